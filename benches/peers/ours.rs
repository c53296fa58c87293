//! wattle's side.

use std::error::Error;
use std::time::Instant;

use wattle_engine::model::Model;
use wattle_engine::{BackendChoice, Control, Engine, EngineOptions, Lora, Precision, Request};

use crate::Side;

pub struct Ours(Engine);

impl Ours {
    /// An engine on the CPU, for as many positions and sequences.
    pub fn new(
        model: Model,
        threads: usize,
        context: usize,
        sequences: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let options = EngineOptions {
            backend: BackendChoice::Cpu,
            precision: Precision::Fast,
            threads: Some(threads),
            context,
            sequences,
            // The same prompt comes again every round, and llama.cpp's side forgets it.
            share_prefixes: false,
            ..EngineOptions::default()
        };
        Ok(Self(Engine::from_model(model, options)?))
    }
}

impl Side for Ours {
    fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
        let all = self.0.logits(ids, &Lora::BASE)?;
        Ok(all[all.len() - self.0.spec().vocab..].to_vec())
    }

    fn prompt(&mut self, ids: &[u32]) -> Result<f64, Box<dyn Error>> {
        let started = Instant::now();
        self.0.generate(&Request::new(ids, 1))?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Paths begin one step apart, so two tokens more are made than are counted: from when the last path has its
    /// first token until the first has its last.
    fn decode(&mut self, id: u32, new: usize, paths: usize) -> Result<f64, Box<dyn Error>> {
        let request = Request { paths: paths as u32, ignore_eos: true, ..Request::new([id], new + 2) };
        let (mut counts, mut start, mut steps, mut end) = (vec![0; paths], None, 0, None);
        self.0.stream(&request, |event| {
            let path = event.path as usize;
            counts[path] += 1;
            if start.is_none() && counts.iter().all(|&count| count > 0) {
                start = Some(Instant::now());
            } else if let (Some(start), 0) = (start, path) {
                steps += usize::from(steps < new);
                end = Some((Instant::now() - start).as_secs_f64());
            }
            Control::Continue
        })?;
        end.map(|seconds| seconds / steps as f64).ok_or_else(|| "no step in which all paths decode".into())
    }
}
