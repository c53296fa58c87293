//! Runs one op with its plain twin, over counting views if asked to.

use wattle_kernels_cpu::attend::plain as attend;
use wattle_kernels_cpu::cache::{Cache, Cached, Kv, KvMut, Side, SideMut};
use wattle_kernels_cpu::gate::{self, Gate};
use wattle_kernels_cpu::gate_up::{self, GateUp};
use wattle_kernels_cpu::kv_write;
use wattle_kernels_cpu::norm::{self, Norm};
use wattle_kernels_cpu::project::{self, Project};
use wattle_kernels_cpu::rope::{self, Angles};
use wattle_kernels_cpu::rope_kv::{self, RopeKv};
use wattle_kernels_cpu::{Carry, Class, Counts, Lora, Pair, Read, Size, Tally, Target, View, Weight, Write};
use wattle_kernels_cpu::{
    activate, add, add_position, embed, lora_down, lora_embed, lora_up, sample, select,
};
use wattle_policy::OpCost;
use wattle_shaders::Sampled;

use super::op::{Io, function};
use crate::error::Result;
use crate::model::{Format, Matrix, NormKind, NormWeights, Vector, weight};
use crate::plan::{Op, OpKind, Site};

/// The counted bytes as a cost.
pub(super) fn cost(counts: &Counts) -> OpCost {
    let bytes = |class: Class| counts.distinct[class as usize];
    OpCost {
        weight_bytes: bytes(Class::Weight),
        lora_bytes: bytes(Class::Lora),
        kv_read_bytes: bytes(Class::KvRead),
        kv_write_bytes: bytes(Class::KvWrite),
        activation_read_bytes: bytes(Class::ActivationRead),
        activation_write_bytes: bytes(Class::ActivationWrite),
        on_chip_bytes: counts.accesses,
        ..OpCost::default()
    }
}

/// Makes the views of an op.
#[derive(Clone, Copy)]
struct Views<'a>(Option<&'a Tally>);

type Floats<'a> = View<'a, &'a [f32]>;
type Written<'a> = View<'a, &'a mut [f32]>;

impl<'a> Views<'a> {
    fn floats(self, values: &'a [f32], class: Class) -> Floats<'a> {
        View::new(values, class, Size::bytes(size_of::<f32>()), self.0)
    }

    fn written(self, values: &'a mut [f32], class: Class) -> Written<'a> {
        View::new(values, class, Size::bytes(size_of::<f32>()), self.0)
    }

    /// The elements or codes of keys (side 0) or values (1).
    fn elements<'k>(self, kv: &Kv<'k>, side: usize) -> Box<dyn Read + 'k>
    where
        'a: 'k,
    {
        let (read, tally) = (Class::KvRead, self.0);
        match kv {
            Kv::F32(sides) => Box::new(View::new(sides[side], read, Size::bytes(4), tally)),
            Kv::F16(sides) => Box::new(View::new(sides[side], read, Size::bytes(2), tally)),
            Kv::Q8 { codes, .. } => Box::new(View::new(codes[side], read, Size::bytes(1), tally)),
        }
    }

    /// The scales of keys and values, if they are codes.
    fn scales<'k>(self, kv: &Kv<'k>) -> [Option<View<'k, &'k [f32]>>; 2]
    where
        'a: 'k,
    {
        match kv {
            Kv::Q8 { scales, .. } => {
                scales.map(|side| Some(View::new(side, Class::KvRead, Size::bytes(4), self.0)))
            }
            _ => [None, None],
        }
    }

    /// Elements and scales of keys and values, to write.
    fn written_kv(self, kv: KvMut<'a>) -> ([Box<dyn Write + 'a>; 2], [Option<Written<'a>>; 2]) {
        fn side<'a, T>(views: Views<'a>, side: &'a mut [T], bytes: usize) -> Box<dyn Write + 'a>
        where
            &'a mut [T]: Write,
        {
            Box::new(View::new(side, Class::KvWrite, Size::bytes(bytes), views.0))
        }
        match kv {
            KvMut::F32(sides) => (sides.map(|values| side(self, values, 4)), [None, None]),
            KvMut::F16(sides) => (sides.map(|values| side(self, values, 2)), [None, None]),
            KvMut::Q8 { codes, scales } => {
                let scales = scales.map(|scales| Some(self.written(scales, Class::KvWrite)));
                (codes.map(|codes| side(self, codes, 1)), scales)
            }
        }
    }

    fn matrix(self, matrix: &'a Matrix) -> Result<View<'a, Weight<'a>>> {
        let scale = match matrix.format {
            Format::Dense(_) => None,
            Format::Panels(format) => {
                let bits = 8 * (format.scale.size() + format.offset.size());
                Some((matrix.cols, format.group(matrix.cols), bits))
            }
        };
        let size = Size { bits: matrix.format.element_bits(), scale };
        Ok(View::new(weight(matrix)?, Class::Weight, size, self.0))
    }

    fn vector<V: std::ops::Deref<Target = Vector>>(self, vector: &'a Option<V>) -> Option<Floats<'a>> {
        vector.as_ref().map(|vector| self.floats(&vector.values, Class::Weight))
    }

    fn norm(self, weights: &'a NormWeights) -> [Option<Floats<'a>>; 2] {
        [self.vector(&weights.weight), self.vector(&weights.bias)]
    }

    /// Counted as the plan keeps them; their values are exact all the same.
    fn factors(self, io: &Io<'a>, site: &Site) -> Vec<Vec<Option<Pair<Floats<'a>>>>> {
        io.pairs(site, |slot, place| {
            let pair = slot.factors.pairs().get(place)?;
            let view = |values| View::new(values, Class::Lora, Size::bytes(io.factors.bytes()), self.0);
            let (a, b) = (view(&pair.a[..]), view(&pair.b[..]));
            Some(Pair { rank: pair.rank, a, b })
        })
    }
}

/// A view as twins take it.
fn read<T: Read>(view: &Option<T>) -> Option<&dyn Read> {
    view.as_ref().map(|view| view as &dyn Read)
}

fn lora<'a>(site: &Site, factors: &'a [Vec<Option<Pair<Floats<'_>>>>]) -> Lora<&'a dyn Read> {
    let pair = |pair: &'a Pair<Floats<'_>>| Pair {
        rank: pair.rank,
        a: &pair.a as &dyn Read,
        b: &pair.b as &dyn Read,
    };
    let slots = |slots: &'a Vec<Option<_>>| slots.iter().map(|slot| slot.as_ref().map(pair)).collect();
    let targets = site.targets.iter().zip(factors);
    let targets =
        targets.map(|(t, factors)| Target { start: t.start, rows: t.rows, slots: slots(factors) }).collect();
    Lora { layer: site.layer, cols: site.cols, rank: site.capacity.rank, part: site.part, targets }
}

fn norm<'a>(
    views: &'a [Option<Floats<'_>>; 2],
    width: usize,
    kind: NormKind,
    eps: f32,
) -> Norm<&'a dyn Read> {
    Norm { width, center: kind == NormKind::Layer, eps, weight: read(&views[0]), bias: read(&views[1]) }
}

/// Runs `op`; what it draws, if it samples. Long because there is one arm for each kind of op.
pub(super) fn run<'a>(op: &'a Op, mut io: Io<'a>, tally: Option<&'a Tally>) -> Result<Vec<Sampled>> {
    let views = Views(tally);
    let inputs: Vec<Floats> = io.inputs.iter().map(|x| views.floats(x, Class::ActivationRead)).collect();
    let x = |index: usize| &inputs[index] as &dyn Read;
    let y = &mut views.written(std::mem::take(&mut io.output), Class::ActivationWrite);
    let t = &mut views.written(std::mem::take(&mut io.carried), Class::ActivationWrite);
    let carried = op.carry.as_ref().map(|carry| (&carry.site, views.factors(&io, &carry.site)));
    let carried = carried.as_ref().map(|(site, factors)| lora(site, factors));
    let carry = carried.as_ref().map(|lora| Carry { rows: io.rows, lora, t });
    let (rows, width, len) = (io.rows, io.width, io.rows.len() * io.width);
    match &op.kind {
        OpKind::Embed { table } => embed::plain(rows, table.cols, &views.matrix(table)?, io.states, y),
        OpKind::AddPosition { table, offset } => {
            add_position::plain(rows, width, *offset, &views.matrix(table)?, x(0), y);
        }
        OpKind::Norm(op) => {
            let weights = views.norm(&op.weights);
            let norm = norm(&weights, width / op.groups, op.kind, op.eps);
            norm::plain(rows.len() * op.groups, &norm, x(0), y, carry);
        }
        OpKind::Project(op) => {
            let (matrix, bias) = (views.matrix(&op.weight)?, views.vector(&op.bias));
            let factors = op.lora.as_ref().map(|site| views.factors(&io, site));
            let lora = op.lora.as_ref().zip(factors.as_ref()).map(|(site, factors)| lora(site, factors));
            let weights = op.norm.as_ref().map(|norm| (norm, views.norm(&norm.weights)));
            let norm = weights.as_ref().map(|(op, weights)| norm(weights, width, op.kind, op.eps));
            let project = Project {
                norm,
                inputs: width,
                outputs: op.weight.rows,
                weight: &matrix,
                bias: read(&bias),
                lora: lora.as_ref().map(|lora| (lora, x(1))),
                activation: op.activation.map(function),
                residual: op.residual.then(|| x(inputs.len() - 1)),
            };
            project::plain(rows, &project, x(0), y, carry);
        }
        OpKind::LoraDown { site } => {
            lora_down::plain(rows, &lora(site, &views.factors(&io, site)), x(0), y);
        }
        OpKind::LoraEmbed { site } => {
            lora_embed::plain(rows, &lora(site, &views.factors(&io, site)), io.states, y);
        }
        OpKind::LoraUp { site } => {
            lora_up::plain(rows, width, &lora(site, &views.factors(&io, site)), x(0), x(1), y);
        }
        OpKind::Activate { function: f, gated } => {
            activate::plain(len, function(*f), x(0), gated.then(|| x(1)), y);
        }
        OpKind::Add => add::plain(len, x(0), x(1), y),
        OpKind::Select => select::plain(io.samples, width, x(0), y),
        OpKind::Gate(gate) => {
            let weights = views.floats(&gate.weights, Class::Weight);
            let gate = Gate { width, hidden: gate.hidden, weights: &weights as &dyn Read };
            gate::plain(rows.len(), &gate, x(0), y);
        }
        OpKind::Sample => return Ok(sample::plain(io.samples, width, x(0), io.states)),
        OpKind::GateUp(op) => {
            let weights = [views.matrix(&op.gate)?, views.matrix(&op.up)?];
            let biases = [views.vector(&op.gate_bias), views.vector(&op.up_bias)];
            let factors = op.lora.as_ref().map(|site| views.factors(&io, site));
            let lora = op.lora.as_ref().zip(factors.as_ref()).map(|(site, factors)| lora(site, factors));
            let gate_up = GateUp {
                inputs: width,
                outputs: op.gate.rows,
                weights: [&weights[0], &weights[1]],
                biases: [read(&biases[0]), read(&biases[1])],
                function: function(op.function),
                lora: lora.as_ref().map(|lora| (lora, x(1))),
            };
            gate_up::plain(rows, &gate_up, x(0), y, carry);
        }
        OpKind::Rope { .. } | OpKind::KvWrite { .. } | OpKind::RopeKv(_) | OpKind::Attend(_) => {
            attention(op, io, views, &inputs, y, carry);
        }
    }
    Ok(Vec::new())
}

/// The ops that know heads and positions.
fn attention<'a>(
    op: &'a Op,
    io: Io<'a>,
    views: Views<'a>,
    inputs: &[Floats<'a>],
    y: &mut dyn Write,
    carry: Option<Carry>,
) {
    let x = |index: usize| &inputs[index] as &dyn Read;
    let (rows, shape) = (io.rows, io.shape);
    let table = io.angles.map(|(_, table)| views.floats(table, Class::Weight));
    let angles = io.angles.zip(table.as_ref()).map(|((pairs, _), table)| {
        let table: &dyn Read = table;
        Angles { table, positions: io.positions, pairs }
    });
    if let OpKind::Attend(attend_op) = &op.kind {
        let kv = io.cache.as_kv();
        let (elements, scales) = ([0, 1].map(|side| views.elements(&kv, side)), views.scales(&kv));
        let [k, v] = [0, 1].map(|side| Side { elements: &*elements[side], scales: read(&scales[side]) });
        let cached = Cached { layout: io.layout, k, v };
        return attend(rows, &io.attend(attend_op), x(0), cached, y, carry);
    }
    let site = op.sites().next();
    let factors = site.map(|site| views.factors(&io, site));
    let lora = site.zip(factors.as_ref()).map(|(site, factors)| lora(site, factors));
    let (mut elements, mut scales) = views.written_kv(io.cache);
    let [k, v] = elements.each_mut().map(|elements| &mut **elements);
    let [k_scales, v_scales] =
        scales.each_mut().map(|scales| scales.as_mut().map(|scales| scales as &mut dyn Write));
    let (k, v) = (SideMut { elements: k, scales: k_scales }, SideMut { elements: v, scales: v_scales });
    let mut cache = Cache { layout: io.layout, k, v };
    match (&op.kind, angles) {
        (OpKind::Rope { heads, head_dim }, Some(angles)) => {
            rope::plain(rows, *heads, *head_dim, &angles, x(0), y)
        }
        (OpKind::KvWrite { .. }, _) => kv_write::plain(rows, x(0), x(1), &mut cache),
        (OpKind::RopeKv(op), angles) => {
            let weights = [&op.q_norm, &op.k_norm].map(|norm| norm.as_ref().map(|norm| views.norm(norm)));
            let head_norm =
                |i: usize| weights[i].as_ref().map(|w| norm(w, shape.head_dim, NormKind::Rms, op.eps));
            let rope_kv = RopeKv {
                heads: shape.heads,
                q_norm: head_norm(0),
                k_norm: head_norm(1),
                angles: angles.filter(|_| op.rotate),
                lora: lora.as_ref().map(|lora| (lora, x(1))),
            };
            rope_kv::plain(rows, &rope_kv, x(0), y, &mut cache);
        }
        _ => {}
    }
}
