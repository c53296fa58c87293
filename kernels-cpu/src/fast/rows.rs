//! Kernels that go over rows once: copies, sums, norms, rotations.

use wattle_shaders::{Row, Sample};

use super::math;
use super::meanwhile::CACHE_LINE;
use super::simd::{Simd, Work, run};
use super::threads::lines;
use super::tile::sum;
use crate::activate::Function;
use crate::cache::{KvMut, Layout, POSITIONS, code, half, scale};
use crate::norm::Norm;
use crate::rope::Angles;
use crate::{State, Weight};

/// `y` \[rows, width\]; marks tokens as seen.
pub fn embed(rows: &[Row], table: &Weight, states: &mut [State], y: &mut [f32]) {
    for (row, y) in rows.iter().zip(y.chunks_mut(table.cols)) {
        let state = &mut states[row.sequence as usize];
        let token = state.token(row);
        state.mark(token);
        table.read_row(token as usize, y);
    }
}

/// `x` and `y` \[rows, width\].
pub fn add_position(rows: &[Row], offset: u32, table: &Weight, x: &[f32], y: &mut [f32]) {
    for (row, (x, y)) in rows.iter().zip(x.chunks(table.cols).zip(y.chunks_mut(table.cols))) {
        table.read_row((row.position + offset) as usize, y);
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }
}

/// `x` \[rows, width\], `y` \[samples, width\].
pub fn select(samples: &[Sample], width: usize, x: &[f32], y: &mut [f32]) {
    for (sample, y) in samples.iter().zip(y.chunks_mut(width)) {
        y.copy_from_slice(&x[sample.row as usize * width..][..width]);
    }
}

/// z = x + y.
pub fn add(x: &[f32], y: &[f32], z: &mut [f32]) {
    lines(z, 1, x.len(), |first, z| {
        let parts = x[first..].iter().zip(&y[first..]);
        z.iter_mut().zip(parts).for_each(|(z, (x, y))| *z = x + y);
    });
}

/// y = f(x), times `up` if there is one.
pub fn activate(function: Function, x: &[f32], up: Option<&[f32]>, y: &mut [f32]) {
    lines(y, 1, math::EXPONENTIAL * x.len(), |first, y| {
        y.copy_from_slice(&x[first..][..y.len()]);
        run(Activate { function, y });
        if let Some(up) = up {
            y.iter_mut().zip(&up[first..]).for_each(|(y, up)| *y *= up);
        }
    });
}

struct Activate<'a> {
    function: Function,
    y: &'a mut [f32],
}

impl Work for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        math::activate(simd, self.function, self.y);
    }
}

/// `x` and `y` \[parts, norm.width\].
pub fn norm(norm: &Norm<&[f32]>, x: &[f32], y: &mut [f32]) {
    lines(y, norm.width, 4 * x.len(), |first, y| {
        y.copy_from_slice(&x[first * norm.width..][..y.len()]);
        run(NormParts { norm, parts: y });
    });
}

struct NormParts<'a> {
    norm: &'a Norm<&'a [f32]>,
    parts: &'a mut [f32],
}

impl Work for NormParts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.parts.chunks_mut(self.norm.width).for_each(|part| norm_part(simd, self.norm, part));
    }
}

#[inline(always)]
fn norm_part<S: Simd>(simd: S, norm: &Norm<&[f32]>, part: &mut [f32]) {
    let width = norm.width as f32;
    let mean = if norm.center { sum(simd, part, |x| x) / width } else { 0.0 };
    let variance = sum(simd, part, |x| (x - mean) * (x - mean)) / width;
    let scale = 1.0 / (variance + norm.eps).sqrt();
    part.iter_mut().for_each(|x| *x = (*x - mean) * scale);
    if let Some(weight) = norm.weight {
        part.iter_mut().zip(weight).for_each(|(x, w)| *x *= w);
    }
    if let Some(bias) = norm.bias {
        part.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// `x` and `y` \[rows, heads × head_dim\].
pub fn rope(rows: &[Row], heads: usize, head_dim: usize, angles: &Angles<&[f32]>, x: &[f32], y: &mut [f32]) {
    y.copy_from_slice(x);
    for (row, y) in rows.iter().zip(y.chunks_mut(heads * head_dim)) {
        run(Rotate { heads: y, head_dim, angles, row });
    }
}

/// Rotates every head.
struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    angles: &'a Angles<&'a [f32]>,
    row: &'a Row,
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pairs = self.angles.pairs;
        let angles = self.angles.table[self.angles.at(self.row)..][..2 * pairs].as_chunks::<2>().0;
        for head in self.heads.chunks_mut(self.head_dim) {
            let (first, second) = head[..2 * pairs].split_at_mut(pairs);
            for ([cos, sin], (x, y)) in angles.iter().zip(first.iter_mut().zip(second)) {
                (*x, *y) = (simd.mul_add(*x, *cos, -*y * sin), simd.mul_add(*y, *cos, *x * sin));
            }
        }
    }
}

/// `k` and `v` \[rows, kv_heads × head_dim\]; K and V of one layer's cache.
pub fn kv_write(rows: &[Row], layout: Layout, k: &[f32], v: &[f32], mut cache: KvMut) {
    let width = layout.kv_heads * layout.head_dim;
    ask(rows, 0, layout, &cache);
    for (index, (k, v)) in k.chunks(width).zip(v.chunks(width)).enumerate() {
        ask(rows, index + 1, layout, &cache);
        keep(&rows[index], layout, [k, v], &mut cache);
    }
}

/// A row's keys and values to their places.
fn keep(row: &Row, layout: Layout, [k, v]: [&[f32]; 2], cache: &mut KvMut) {
    let (head_dim, position) = (layout.head_dim, row.position as usize);
    for (head, (k, v)) in k.chunks(head_dim).zip(v.chunks(head_dim)).enumerate() {
        let block = layout.block(row.sequence, head, position);
        let at = [layout.key(block, position, 0), layout.value(block, position, 0)];
        match cache {
            KvMut::F32(cache) => put(cache, at, [k, v], [|x| x; 2]),
            KvMut::F16(cache) => put(cache, at, [k, v], [half; 2]),
            KvMut::Q8 { codes, scales } => {
                let own = [scale(k), scale(v)];
                let at_scale = layout.scale(block, position);
                scales.iter_mut().zip(own).for_each(|(scales, own)| scales[at_scale] = own);
                put(codes, at, [k, v], own.map(|own| move |x| code(x, own) as i8));
            }
        }
    }
}

/// Asks for the places of a row's keys, if there is such a row and they are not on the cache lines of the row before.
fn ask(rows: &[Row], index: usize, layout: Layout, cache: &KvMut) {
    let Some(row) = rows.get(index) else { return };
    let before = index.checked_sub(1).map(|before| &rows[before]);
    let begins = (row.position as usize).is_multiple_of(POSITIONS);
    if begins || before.is_none_or(|before| before.sequence != row.sequence) {
        run(Places { row, layout, cache });
    }
}

/// The places of a row's keys: as many cache lines as a key has elements, for which writes would wait one after the other.
struct Places<'a, 'b> {
    row: &'a Row,
    layout: Layout<'a>,
    cache: &'a KvMut<'b>,
}

impl Work for Places<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { row, layout, cache } = self;
        let (keys, size) = match cache {
            KvMut::F32([keys, _]) => start(keys),
            KvMut::F16([keys, _]) => start(keys),
            KvMut::Q8 { codes: [keys, _], .. } => start(keys),
        };
        let position = row.position as usize;
        for head in 0..layout.kv_heads {
            let key = layout.key(layout.block(row.sequence, head, position), position, 0);
            for byte in (0..layout.head_dim * POSITIONS * size).step_by(CACHE_LINE) {
                simd.prefetch(keys.wrapping_add(key * size + byte));
            }
        }
    }
}

/// Where values begin, and the bytes of each.
fn start<T>(values: &[T]) -> (*const u8, usize) {
    (values.as_ptr().cast(), size_of::<T>())
}

/// A head's key to its panel, and its value to its place.
fn put<T>(cache: &mut [&mut [T]; 2], at: [usize; 2], [k, v]: [&[f32]; 2], store: [impl Fn(f32) -> T; 2]) {
    let keys = cache[0][at[0]..].iter_mut().step_by(POSITIONS);
    keys.zip(k).for_each(|(to, &k)| *to = store[0](k));
    cache[1][at[1]..].iter_mut().zip(v).for_each(|(to, &v)| *to = store[1](v));
}

/// The operands besides qkv; see the twin's.
pub struct RopeKv<'a> {
    /// Query heads.
    pub heads: usize,
    /// Of the cache.
    pub layout: Layout<'a>,
    /// Norm of every q head.
    pub q_norm: Option<Norm<&'a [f32]>>,
    /// Norm of every k head.
    pub k_norm: Option<Norm<&'a [f32]>>,
    /// Angles, if q and k are rotated.
    pub angles: Option<Angles<&'a [f32]>>,
}

/// `qkv` \[rows, (heads + 2 kv_heads) × head_dim\], `y` \[rows, heads × head_dim\]; K and V of one layer's cache.
pub fn rope_kv(rows: &[Row], op: &RopeKv, qkv: &[f32], y: &mut [f32], mut cache: KvMut) {
    let head_dim = op.layout.head_dim;
    let (q_width, kv_width) = (op.heads * head_dim, op.layout.kv_heads * head_dim);
    let turn = |row, heads: &mut [f32], norm: &Option<Norm<&[f32]>>| {
        if let Some(norm) = norm {
            run(NormParts { norm, parts: heads });
        }
        if let Some(angles) = &op.angles {
            run(Rotate { heads, head_dim, angles, row });
        }
    };
    let (layout, mut turned) = (op.layout, vec![0.0; kv_width]);
    ask(rows, 0, layout, &cache);
    for (index, (qkv, y)) in qkv.chunks(q_width + 2 * kv_width).zip(y.chunks_mut(q_width)).enumerate() {
        let row = &rows[index];
        ask(rows, index + 1, layout, &cache);
        let (q, kv) = qkv.split_at(q_width);
        let (k, v) = kv.split_at(kv_width);
        y.copy_from_slice(q);
        turn(row, y, &op.q_norm);
        turned.copy_from_slice(k);
        turn(row, &mut turned, &op.k_norm);
        keep(row, layout, [&turned, v], &mut cache);
    }
}
