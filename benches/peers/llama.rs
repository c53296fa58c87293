//! llama.cpp's side.

use std::error::Error;
use std::ffi::CStr;
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

use crate::Side;

/// What llama.cpp says of its build and this processor.
pub fn system_info() -> String {
    // SAFETY: the function returns a static, terminated string.
    unsafe { CStr::from_ptr(llama_cpp_sys_2::llama_print_system_info()) }.to_string_lossy().trim().to_owned()
}

/// Loads `file` and gives `work` a side that runs it.
pub fn with(
    file: &Path,
    threads: usize,
    context: usize,
    sequences: usize,
    work: impl FnOnce(&mut dyn Side) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut backend = LlamaBackend::init()?;
    backend.void_logs();
    let model = LlamaModel::load_from_file(&backend, file, &LlamaModelParams::default())?;
    let (threads, context, sequences) =
        (i32::try_from(threads)?, u32::try_from(context)?, u32::try_from(sequences)?);
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(context * sequences))
        .with_n_seq_max(sequences)
        .with_kv_unified(sequences == 1)
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    let context = model.new_context(&backend, params)?;
    work(&mut Llama(context))
}

struct Llama<'a>(LlamaContext<'a>);

impl Llama<'_> {
    /// A step of rows (token, position, sequence); the logits of the last row, or of all.
    fn step(&mut self, rows: &[(u32, usize, usize)], all: bool) -> Result<(), Box<dyn Error>> {
        let mut batch = LlamaBatch::new(rows.len(), 1);
        for (index, &(token, position, sequence)) in rows.iter().enumerate() {
            let token = LlamaToken(i32::try_from(token)?);
            let last = all || index + 1 == rows.len();
            batch.add(token, i32::try_from(position)?, &[i32::try_from(sequence)?], last)?;
        }
        self.0.decode(&mut batch)?;
        self.0.synchronize();
        Ok(())
    }

    fn run_prompt(&mut self, ids: &[u32]) -> Result<(), Box<dyn Error>> {
        self.0.clear_kv_cache();
        let rows: Vec<_> = ids.iter().enumerate().map(|(position, &id)| (id, position, 0)).collect();
        self.step(&rows, false)
    }
}

impl Side for Llama<'_> {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
        self.run_prompt(ids)?;
        Ok(self.0.get_logits_ith(i32::try_from(ids.len() - 1)?).to_vec())
    }

    fn prompt(&mut self, ids: &[u32]) -> Result<f64, Box<dyn Error>> {
        let started = Instant::now();
        self.run_prompt(ids)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Tokens are given, not sampled.
    fn decode(&mut self, id: u32, new: usize, paths: usize) -> Result<f64, Box<dyn Error>> {
        self.0.clear_kv_cache();
        let rows = |position| (0..paths).map(|path| (id, position, path)).collect::<Vec<_>>();
        self.step(&rows(0), true)?;
        let started = Instant::now();
        for position in 1..=new {
            self.step(&rows(position), true)?;
        }
        Ok(started.elapsed().as_secs_f64() / new as f64)
    }
}
