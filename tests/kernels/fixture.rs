//! What cases are made of: numbers, rows, weights, adapters, one-op plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};
use wattle_engine::adapter::{Factors, Pair, Place, Target};
use wattle_engine::backend::Step;
use wattle_engine::model::{
    Bits, Bytes, Dtype, Format, INT4, INT8, Matrix, Offset, PanelFormat, Q4_0, Q4_1, Q8_0, Vector,
};
use wattle_engine::plan::{
    Carry, Extent, FactorType, KvShape, KvType, LoraCapacity, Op, OpKind, Plan, Site, SiteTarget, Tensor,
    TensorId,
};
use wattle_engine::{GENERATED, LayerMask, NO_INDEX, Row, Sample};
use wattle_kernels_cpu::ColumnOrder;

use crate::{Act, Case};

/// The vocabulary of all cases' plans that do not choose another.
pub const VOCAB: usize = 173;

/// Repeatable numbers: SplitMix64 (Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In \[-1, 1).
    pub fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Numbers in \[-scale, scale).
    pub fn numbers(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.number() * scale).collect()
    }

    /// A matrix whose products with inputs of size 1 are of size 1.
    pub fn matrix(&mut self, rows: usize, cols: usize, format: impl Into<Format>) -> Arc<Matrix> {
        let scale = 1.7 / (cols as f32).sqrt();
        match format.into() {
            Format::Dense(dtype) => matrix(rows, cols, dtype, &self.numbers(rows * cols, scale)),
            Format::Panels(format) => self.quantized(rows, cols, format, scale),
        }
    }

    /// Any codes and zeros, also in what fills panels up; scales and minima that make elements of this size.
    fn quantized(&mut self, rows: usize, cols: usize, format: PanelFormat, size: f32) -> Arc<Matrix> {
        let lens = format.bytes(rows, cols).unwrap_or_else(|| unreachable!("{rows} × {cols} fits memory"));
        let steps = match (format.bits, format.offset) {
            (Bits::Eight, _) => 128.0,
            (_, Offset::NormalFloat) => 1.0,
            (Bits::Four, _) => 8.0,
        };
        let codes: Vec<u8> = (0..lens[0]).map(|_| self.next() as u8).collect();
        let scales = self.numbers(lens[1] / format.scale.size(), size / steps);
        let scales = stored(format.scale, &scales);
        let offsets = match format.offset {
            Offset::Minimum => stored(Dtype::F16, &self.numbers(lens[2] / 2, size)),
            _ => Bytes::new((0..lens[2]).map(|_| self.below(16) as u8).collect::<Vec<_>>()),
        };
        let matrix = Matrix::panels("quantized", rows, cols, format, Bytes::new(codes), [scales, offsets]);
        Arc::new(matrix.unwrap_or_else(|| unreachable!("its lengths are the format's")))
    }

    /// A bias or norm weight around 1, so that leaving it out shows.
    pub fn vector(&mut self, len: usize) -> Arc<Vector> {
        let values = (0..len).map(|_| 1.0 + 0.5 * self.number()).collect();
        Arc::new(Vector { name: "vector".into(), values })
    }
}

/// The matrix with its columns in a random order.
pub fn shuffled(matrix: &Arc<Matrix>, random: &mut Random) -> Arc<Matrix> {
    let mut inputs: Vec<u32> = (0..matrix.cols as u32).collect();
    for last in (1..inputs.len()).rev() {
        inputs.swap(last, random.below(last + 1));
    }
    let order = ColumnOrder::new(inputs).map(Arc::new);
    Arc::new(Matrix { order, ..(**matrix).clone() })
}

/// A matrix of these values, rounded to `dtype`.
pub fn matrix(rows: usize, cols: usize, dtype: Dtype, values: &[f32]) -> Arc<Matrix> {
    let matrix = Matrix::new("matrix", rows, cols, dtype, stored(dtype, values));
    Arc::new(matrix.unwrap_or_else(|| unreachable!("{rows} × {cols} values were made for this matrix")))
}

/// These values, rounded to `dtype`.
fn stored(dtype: Dtype, values: &[f32]) -> Bytes {
    let words = |round: fn(f32) -> u16| Bytes::new(Elements(values.iter().map(|&x| round(x)).collect()));
    match dtype {
        Dtype::F32 => Bytes::new(Elements(values.to_vec())),
        Dtype::F16 => words(|x| f16::from_f32(x).to_bits()),
        Dtype::Bf16 => words(|x| bf16::from_f32(x).to_bits()),
    }
}

/// Elements as an owner of bytes, little-endian as all supported machines are.
struct Elements<T>(Vec<T>);

impl<T: bytemuck::Pod> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Quantized formats that differ in all that kernels tell apart: wattle's own, and those of published checkpoints.
pub const QUANTIZED: [PanelFormat; 8] = [
    Q8_0,
    Q4_0,
    Q4_1,
    INT8,
    INT4,
    PanelFormat { offset: Offset::Zero, group: Some(64), ..Q4_0 },
    PanelFormat { offset: Offset::Zero, group: Some(128), scale: Dtype::Bf16, ..Q4_0 },
    PanelFormat { offset: Offset::NormalFloat, group: Some(64), scale: Dtype::F32, ..Q4_0 },
];

/// A plan that is being written down.
pub struct Draft(pub Plan);

impl Draft {
    /// Without ops, with a cache of one layer and one head of 4.
    pub fn new() -> Self {
        Self::with_kv(KvShape { layers: 1, heads: 1, kv_heads: 1, head_dim: 4, store: KvType::F32 })
    }

    /// Without ops, with this cache.
    pub fn with_kv(kv: KvShape) -> Self {
        let factors = FactorType::F32;
        Self(Plan { ops: Vec::new(), tensors: Vec::new(), kv, factors, rope: None, vocab: VOCAB })
    }

    /// A tensor that no op writes: it is imported.
    pub fn tensor(&mut self, name: &str, extent: Extent, width: usize) -> TensorId {
        self.0.tensors.push(Tensor { name: name.into(), extent, width });
        TensorId(self.0.tensors.len() as u32 - 1)
    }

    /// An op, and the tensor it writes if it has a shape.
    pub fn op(&mut self, kind: OpKind, inputs: &[TensorId], output: Option<(Extent, usize)>) -> TensorId {
        let name = kind.kernel();
        let output = output.map(|(extent, width)| self.tensor(name, extent, width));
        self.0.ops.push(Op { name: name.into(), kind, inputs: inputs.to_vec(), output, carry: None });
        output.unwrap_or(TensorId(u32::MAX))
    }

    /// The plan of one op that maps tensors of these widths to one.
    pub fn map(mut self, kind: OpKind, extent: Extent, inputs: &[usize], output: usize) -> Plan {
        let inputs: Vec<_> = inputs.iter().map(|&width| self.tensor("input", extent, width)).collect();
        self.op(kind, &inputs, Some((extent, output)));
        self.0
    }
}

/// The plan, its first op carrying A x of a site.
pub fn carrying(mut plan: Plan, site: &Arc<Site>) -> Plan {
    let t = TensorId(plan.tensors.len() as u32);
    let extent = plan.tensors[0].extent;
    plan.tensors.push(Tensor { name: "t".into(), extent, width: site.t_len() });
    plan.ops[0].carry = Some(Carry { site: Arc::clone(site), t });
    plan
}

/// `n` rows of three sequences, from position 2 on, with random tokens.
pub fn rows(n: usize, random: &mut Random) -> Vec<Row> {
    let row = |i: usize| Row::prompt(random.below(VOCAB) as u32, 2 + i as u32 / 3, i as u32 % 3);
    (0..n).map(row).collect()
}

/// A step of these rows of which every `every`-th is sampled, from row `first` on.
pub fn step(rows: Vec<Row>, first: usize, every: usize) -> Step {
    let sample = |index: usize| greedy(index, &rows[index]);
    let samples = (first..rows.len()).step_by(every).map(sample).collect();
    Step { rows, samples }
}

/// The most probable token after a row.
pub fn greedy(index: usize, row: &Row) -> Sample {
    Sample {
        row: index as u32,
        sequence: row.sequence,
        path: 0,
        position: row.position + 1,
        seed: [0; 2],
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        penalty: 1.0,
        _pad: [0; 2],
    }
}

/// Every case, and once more with rows of class generated: only such rows, or some in front of those of a prompt.
pub fn in_both_classes(cases: Vec<Case>) -> Vec<Case> {
    let generated = |case: &Case| {
        let mut case = Case { name: format!("{}, generated", case.name), ..case.clone() };
        if let [Act::Run { step, .. }] = case.acts.as_mut_slice() {
            let n = step.rows.len();
            // A device of tiny limits has no workgroups for more.
            let generated = if n.is_multiple_of(3) { n } else { n - n / 3 }.min(32);
            step.rows[..generated].iter_mut().for_each(|row| row.flags |= GENERATED);
            case.capacity.sequences = generated.max(case.capacity.sequences);
        }
        case
    };
    let more: Vec<_> = cases.iter().map(generated).collect();
    cases.into_iter().chain(more).collect()
}

/// The layer of all cases' LoRA sites: its bit is in the second word of a mask.
const LAYER: u32 = 37;

/// A site with room for ranks up to 6, 5, 3 or 1 in four slots, whose targets have these outputs, one after the other.
pub fn site(cols: usize, outputs: &[usize]) -> Arc<Site> {
    site_in_parts(cols, outputs, cols)
}

/// The same, t being sums over `part` columns each.
pub fn site_in_parts(cols: usize, outputs: &[usize], part: usize) -> Arc<Site> {
    let names = [Target::Q, Target::K, Target::V];
    let mut start = 0;
    let target = |(&target, &rows): (&Target, &usize)| {
        start += rows;
        SiteTarget { target, rows, start: start - rows }
    };
    let targets = names.iter().zip(outputs).map(target).collect();
    Arc::new(Site {
        layer: LAYER,
        cols,
        targets,
        capacity: LoraCapacity { slots: 4, rank: [6, 5, 3, 1][cols % 4], outside: true },
        part,
    })
}

/// The site with room for other ranks.
pub fn of_rank(site: &Site, rank: usize) -> Arc<Site> {
    Arc::new(Site { capacity: LoraCapacity { rank, ..site.capacity }, ..site.clone() })
}

/// Slot 0 has the highest rank everywhere; slot 1 rank 1 to 3 at most, and nothing for the second target; slot 2 is empty;
/// slot 3 is all NaN, and [`lora_rows`] mask it off.
pub fn slots(site: &Site, random: &mut Random) -> Vec<Option<Arc<Factors>>> {
    let mut factors = |rank: &dyn Fn(usize) -> usize, nan: bool| {
        let mut pairs = BTreeMap::new();
        for (index, target) in site.targets.iter().enumerate().filter(|&(index, _)| rank(index) > 0) {
            let (rank, cols, rows) = (rank(index), site.cols, target.rows);
            let mut values = |len| if nan { vec![f32::NAN; len] } else { random.numbers(len, 0.5) };
            let pair = Pair { rank, cols, rows, a: values(rank * cols), b: values(rows * rank) };
            pairs.insert(Place { layer: site.layer, target: target.target }, pair);
        }
        Some(Arc::new(Factors::new(pairs)))
    };
    let most = site.capacity.rank;
    let low = |index: usize| [3.min(most), 0, 1][index.min(2)];
    vec![factors(&|_| most, false), factors(&low, false), None, factors(&|_| 2.min(most), true)]
}

/// Rows that differ in slot and mask: on, none, low rank, empty slot, NaN masked off, on elsewhere only; behind one of
/// each, seven of each in a run, as prompts are.
pub fn lora_rows(n: usize, random: &mut Random) -> Vec<Row> {
    let mut rows = rows(n, random);
    let elsewhere = LayerMask(!LayerMask::of([LAYER as usize]).0);
    let kinds = [
        (0, LayerMask::of([LAYER as usize])),
        (NO_INDEX, LayerMask::ALL),
        (1, LayerMask::ALL),
        (2, LayerMask::ALL),
        (3, LayerMask::NONE),
        (0, elsewhere),
    ];
    for (index, row) in rows.iter_mut().enumerate() {
        let kind = if index < kinds.len() { index } else { (index - kinds.len()) / 7 % kinds.len() };
        let (slot, mask) = kinds[kind];
        (row.slot, row.lora) = (slot, mask.words());
    }
    rows
}

/// t for the rows that have one, NaN elsewhere: nobody may read that.
pub fn t_values(site: &Site, slots: &[Option<Arc<Factors>>], rows: &[Row], random: &mut Random) -> Vec<f32> {
    let mut values = vec![f32::NAN; rows.len() * site.t_len()];
    for (line, row) in rows.iter().enumerate().filter(|(_, row)| row.lora_in(site.layer)) {
        for (index, target) in site.targets.iter().enumerate() {
            let place = Place { layer: site.layer, target: target.target };
            let factors = slots.get(row.slot as usize).and_then(|slot| slot.as_ref());
            let rank = factors.and_then(|factors| factors.pairs().get(&place)).map_or(0, |pair| pair.rank);
            for partial in line * site.partials()..(line + 1) * site.partials() {
                let start = partial * site.t_width() + index * site.capacity.rank;
                values[start..start + rank].copy_from_slice(&random.numbers(rank, 1.0));
            }
        }
    }
    values
}

/// The sampled rows of a step.
pub fn sampled_rows(step: &Step) -> Vec<Row> {
    step.samples.iter().map(|sample| step.rows[sample.row as usize]).collect()
}
