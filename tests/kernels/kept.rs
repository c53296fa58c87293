//! LoRA factors as plans keep them.

use std::sync::Arc;

use half::f16;
use wattle_engine::adapter::{Factors, Pair, Place};
use wattle_engine::backend::Capacity;
use wattle_engine::plan::{Extent, FactorType, OpKind, Site, TensorId};
use wattle_engine::{GENERATED, Row};

use crate::Case;
use crate::fixture::{Draft, Random, VOCAB, lora_rows, site, site_in_parts, slots, step, t_values};
use crate::rounded::{Rounded, SUMS, project};

/// Every case, and those with factors once more, these being values that binary16 holds, and kept so.
pub fn in_both_types(cases: Vec<Case>) -> Vec<Case> {
    let halves = |case: &Case| Case {
        name: format!("{}, factors f16", case.name),
        plan: Arc::new((*case.plan).clone().with_factors(FactorType::F16)),
        slots: changed(&case.slots, |_, pair| {
            pair.a.iter_mut().chain(&mut pair.b).for_each(|value| *value = f16::from_f32(*value).to_f32());
        }),
        ..case.clone()
    };
    let more: Vec<_> = cases.iter().filter(|case| !case.slots.is_empty()).map(halves).collect();
    cases.into_iter().chain(more).collect()
}

/// Slots with other factors.
fn changed(slots: &[Option<Arc<Factors>>], change: impl Fn(usize, &mut Pair)) -> Vec<Option<Arc<Factors>>> {
    let of_slot = |(slot, factors): (usize, &Option<Arc<Factors>>)| {
        let mut factors = (**factors.as_ref()?).clone();
        factors.pairs_mut().values_mut().for_each(|pair| change(slot, pair));
        Some(Arc::new(factors))
    };
    slots.iter().enumerate().map(of_slot).collect()
}

/// Factors of every size: in slot 0 A is too large for binary16 and B too small, in slot 1 the other way round.
fn extreme(slots: Vec<Option<Arc<Factors>>>) -> Vec<Option<Arc<Factors>>> {
    changed(&slots, |slot, pair| {
        let size = [1e12, 1e-12][slot.min(1)];
        pair.a.iter_mut().for_each(|a| *a *= size);
        pair.b.iter_mut().for_each(|b| *b /= size);
    })
}

/// By how much a sum of elements, each times something of this size, may be off: an element of binary16 by 2^-11 of
/// itself or, as devices may take subnormal numbers for 0, 2^-28 of the factor's largest; and sums are of f32.
fn bound(factor: &[f32], terms: impl Iterator<Item = (f32, f64)>) -> f64 {
    let largest = factor.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs())));
    let of = |(element, size): (f32, f64)| {
        let element = f64::from(element.abs());
        size * ((element * 2.0_f64.powi(-11)).max(largest * 2.0_f64.powi(-28)) + SUMS * element)
    };
    terms.map(of).sum()
}

/// The factors of target `index` of a site for a row.
fn pair<'a>(site: &Site, slots: &'a [Option<Arc<Factors>>], row: &Row, index: usize) -> Option<&'a Pair> {
    let place = Place { layer: site.layer, target: site.targets[index].target };
    let factors = slots.get(row.slot as usize)?.as_ref().filter(|_| row.lora_in(site.layer))?;
    factors.pairs().get(&place)
}

/// Bounds of t = A v, v being `size` at most in magnitude; [`bound`] of each part of a row of A.
fn of_t(
    site: &Site,
    slots: &[Option<Arc<Factors>>],
    rows: &[Row],
    v: impl Fn(usize, usize) -> f64,
) -> Vec<f64> {
    let mut bounds = vec![0.0; rows.len() * site.t_len()];
    for (line, row) in rows.iter().enumerate() {
        for index in 0..site.targets.len() {
            let Some(pair) = pair(site, slots, row, index) else { continue };
            for (r, a) in pair.a.chunks(pair.cols).enumerate() {
                for (p, part) in a.chunks(site.part).enumerate() {
                    let at = p * site.t_width() + index * site.capacity.rank + r;
                    let terms = (p * site.part..).zip(part).map(|(i, &a)| (a, v(line, i)));
                    bounds[line * site.t_len() + at] = bound(&pair.a, terms);
                }
            }
        }
    }
    bounds
}

/// Bounds of y + B t; `y` is their size without LoRA.
fn of_y(site: &Site, slots: &[Option<Arc<Factors>>], rows: &[Row], t: &[f32], y: &[f32]) -> Vec<f64> {
    let mut bounds: Vec<f64> = y.iter().map(|y| SUMS * f64::from(y.abs())).collect();
    let width = y.len() / rows.len();
    for (line, row) in rows.iter().enumerate() {
        for (index, target) in site.targets.iter().enumerate() {
            let Some(pair) = pair(site, slots, row, index) else { continue };
            for (output, b) in pair.b.chunks(pair.rank).enumerate() {
                let size = |r: usize| -> f64 {
                    let at =
                        |p: usize| line * site.t_len() + p * site.t_width() + index * site.capacity.rank + r;
                    (0..site.partials()).map(|p| f64::from(t[at(p)].abs())).sum()
                };
                let terms = b.iter().enumerate().map(|(r, &b)| (b, size(r)));
                bounds[line * width + target.start + output] += bound(&pair.b, terms);
            }
        }
    }
    bounds
}

/// t = A x by a launch of its own.
fn down(cols: usize, n: usize) -> Rounded {
    let random = &mut Random(cols as u64);
    let site = site(cols, &[8, 4, 4]);
    let (slots, rows) = (extreme(slots(&site, random)), lora_rows(n, random));
    let x = random.numbers(n * cols, 1.0);
    let bounds = of_t(&site, &slots, &rows, |line, i| f64::from(x[line * cols + i].abs()));
    let kind = OpKind::LoraDown { site: Arc::clone(&site) };
    let plan = Draft::new().map(kind, Extent::Rows, &[cols], site.t_width());
    made(format!("{n} rows of {cols}, down"), plan, slots, rows, vec![x], vec![bounds])
}

/// t = a column of A.
fn embed(n: usize) -> Rounded {
    let random = &mut Random(n as u64);
    let site = site(VOCAB, &[5]);
    let (slots, rows) = (extreme(slots(&site, random)), lora_rows(n, random));
    let bounds = of_t(&site, &slots, &rows, |line, i| f64::from(u8::from(i == rows[line].token as usize)));
    let kind = OpKind::LoraEmbed { site: Arc::clone(&site) };
    let plan = Draft::new().map(kind, Extent::Rows, &[], site.t_width());
    made(format!("{n} rows, embed"), plan, slots, rows, vec![], vec![bounds])
}

/// y + B t, by a launch of its own.
fn up(outputs: &[usize], n: usize) -> Rounded {
    let width = outputs.iter().sum();
    let random = &mut Random(width as u64);
    let site = site(width, outputs);
    let (slots, rows) = (extreme(slots(&site, random)), lora_rows(n, random));
    let (y, t) = (random.numbers(n * width, 1.0), sized_t(&site, &slots, &rows, random));
    let bounds = of_y(&site, &slots, &rows, &t, &vec![2.0; n * width]);
    let kind = OpKind::LoraUp { site: Arc::clone(&site) };
    let plan = Draft::new().map(kind, Extent::Rows, &[width, site.t_width()], width);
    made(format!("{n} rows of {width}, up"), plan, slots, rows, vec![y, t], vec![bounds])
}

/// The same behind W x, t being in parts, for rows of class generated or prompt.
fn behind(inputs: usize, outputs: usize, part: usize, n: usize, generated: bool) -> Rounded {
    let random = &mut Random((inputs * outputs) as u64);
    let site = site_in_parts(inputs, &[outputs], part);
    let (slots, mut rows) = (extreme(slots(&site, random)), lora_rows(n, random));
    if generated {
        rows.iter_mut().for_each(|row| row.flags |= GENERATED);
    }
    let (x, t) = (random.numbers(n * inputs, 1.0), sized_t(&site, &slots, &rows, random));
    let weight = random.matrix(outputs, inputs, wattle_engine::model::Dtype::F32);
    // Weights are at most 1.7 / sqrt(inputs).
    let size = 1.7 * (inputs as f32).sqrt();
    let bounds = of_y(&site, &slots, &rows, &t, &vec![size; n * outputs]);
    let kind = project(&weight, None, Some(Arc::clone(&site)));
    let plan = Draft::new().map(kind, Extent::Rows, &[inputs, site.t_len()], outputs);
    let class = if generated { ", generated" } else { "" };
    let name = format!("{n} rows{class}, {inputs} → {outputs}, t in parts of {part}");
    made(name, plan, slots, rows, vec![x, t], vec![bounds])
}

/// t of the size that A of [`extreme`] makes.
fn sized_t(site: &Site, slots: &[Option<Arc<Factors>>], rows: &[Row], random: &mut Random) -> Vec<f32> {
    let mut t = t_values(site, slots, rows, random);
    for (t, row) in t.chunks_mut(site.t_len()).zip(rows) {
        let size = if row.slot == 0 { 1e12 } else { 1e-12 };
        t.iter_mut().for_each(|t| *t *= size);
    }
    t
}

fn made(
    name: String,
    plan: wattle_engine::plan::Plan,
    slots: Vec<Option<Arc<Factors>>>,
    rows: Vec<Row>,
    inputs: Vec<Vec<f32>>,
    bounds: Vec<Vec<f64>>,
) -> Rounded {
    let import = (0..).map(TensorId).zip(inputs).collect();
    let case = Case::new(name, plan.with_factors(FactorType::F16), step(rows, 0, 1), import);
    // Every row may be one that a sequence of its own has generated.
    let capacity = Capacity { sequences: case.capacity.rows.max(3), ..case.capacity };
    Rounded::new(Case { slots, capacity, ..case }, bounds)
}

/// Cases with factors that binary16 rounds, of sizes that it does not hold, and what that may change.
pub fn kept() -> Vec<Rounded> {
    let downs = [(1, 3), (64, 9), (65, 2), (173, 7), (514, 33)].map(|(cols, n)| down(cols, n));
    let ups: [(&[usize], usize); 4] = [(&[1], 2), (&[65, 64], 9), (&[70, 20, 21], 7), (&[400, 131], 33)];
    let behind = [(65, 77, 65, 5), (66, 77, 10, 9), (64, 33, 4, 66)];
    let behind = [true, false]
        .into_iter()
        .flat_map(|class| behind.map(|(i, o, part, n)| self::behind(i, o, part, n, class)));
    downs.into_iter().chain([1, 9].map(embed)).chain(ups.map(|(o, n)| up(o, n))).chain(behind).collect()
}
