//! Measured choices: how they are measured, and the file that keeps them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use wattle_shaders::{GENERATED, Row, Sample};

use super::GpuBackend;
use super::device::{DeviceInfo, Mapped};
use super::launch::{Class, Launch};
use super::prepared::{Dispatch, Prepared, most_lines, variants};
use super::split::Division;
use super::tiles::{Shape, Tile};
use super::timing::Stamps;
use crate::backend::Step;
use crate::error::Result;
use crate::plan::Extent;

/// Bytes of a file, devices and choices of each, at most: no honest file has more.
const MOST_BYTES: u64 = 1 << 20;
const MOST_DEVICES: usize = 32;
const MOST_CHOICES: usize = 2048;

/// Runs of a tile, at least; the middle one counts.
const RUNS: usize = 7;
/// Dispatches of a shape that take turns, at most: matrices of some layers, so that caches do not keep them.
const TURNS: usize = 32;

/// Tiles by shape.
type Choices = BTreeMap<String, Tile>;

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    devices: BTreeMap<String, Choices>,
}

/// Choices hold for a device with its driver, and for one version of the kernels.
fn device_key(info: &DeviceInfo) -> String {
    format!("{}, {}, {}, wattle {}", info.name, info.driver, info.api, env!("CARGO_PKG_VERSION"))
}

/// The file's content; nothing where there is no file.
fn load(file: &Path) -> io::Result<Kept> {
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error),
        // Opening a pipe would wait for somebody who writes.
        Ok(metadata) if !metadata.is_file() => return Err(io::Error::other("not a regular file")),
        Ok(_) => {}
    }
    let mut text = String::new();
    File::open(file)?.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("more than {MOST_BYTES} bytes")));
    }
    let kept: Kept = serde_json::from_str(&text)?;
    let most = kept.devices.values().map(BTreeMap::len).max().unwrap_or(0);
    if kept.devices.len() > MOST_DEVICES || most > MOST_CHOICES {
        return Err(io::Error::other("more devices or choices than anybody measures"));
    }
    Ok(kept)
}

/// The choices for a device. A file that cannot be read is ignored, with a warning: the defaults are good.
pub(super) fn read(file: &Path, info: &DeviceInfo) -> Choices {
    let kept = load(file).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "measured choices are ignored");
        Kept::default()
    });
    kept.devices
        .into_iter()
        .find(|(key, _)| *key == device_key(info))
        .map(|(_, choices)| choices)
        .unwrap_or_default()
}

/// Keeps the choices for a device, and those of others.
fn write(file: &Path, info: &DeviceInfo, choices: &Choices) -> io::Result<()> {
    let mut kept = load(file).unwrap_or_default();
    kept.devices.insert(device_key(info), choices.clone());
    while kept.devices.len() > MOST_DEVICES {
        let other = kept.devices.keys().find(|key| **key != device_key(info)).cloned();
        other.and_then(|key| kept.devices.remove(&key));
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    // Whoever reads at the same time sees the old file or the new one.
    let new = file.with_extension(format!("{}.new", std::process::id()));
    fs::write(&new, serde_json::to_string_pretty(&kept)?)?;
    fs::rename(&new, file)
}

/// The shapes of a plan's projections, with how many lines each is measured, and the dispatches that have it.
fn shapes(plan: &Prepared) -> Vec<(Shape, u32, Vec<&Dispatch>)> {
    let mut found: Vec<(Shape, u32, Vec<&Dispatch>)> = Vec::new();
    let rows = |dispatch: &Dispatch| (dispatch.launch.extent, dispatch.launch.class);
    for dispatch in plan.ops.iter().flatten() {
        let most = most_lines(&dispatch.launch, plan.limits.capacity);
        for (upto, shape) in dispatch.launch.shapes(most) {
            let same = found
                .iter_mut()
                .find(|(known, _, alike)| *known == shape && rows(alike[0]) == rows(dispatch));
            match same {
                Some((.., alike)) => alike.push(dispatch),
                None => found.push((shape, upto.min(most as u32), vec![dispatch])),
            }
        }
    }
    found
}

/// A step in which a launch has so many lines.
fn step(launch: &Launch, lines: u32) -> Step {
    let flags = if launch.class == Some(Class::Generated) { GENERATED } else { 0 };
    let rows = (0..lines).map(|position| Row { flags, ..Row::prompt(0, position, 0) }).collect();
    let sample = |row| Sample { row, ..bytemuck::Zeroable::zeroed() };
    let sampled = if launch.extent == Extent::Samples { lines } else { 0 };
    Step { rows, samples: (0..sampled).map(sample).collect() }
}

impl GpuBackend {
    /// Measures the tiles of all shapes that the prepared plans have and the table has not; takes and keeps the best.
    pub(super) fn tune_tiles(&mut self) -> Result<usize> {
        if !self.gpu.info.timestamps {
            tracing::warn!(device = self.gpu.info.name, "not tuned: the device has no timestamps");
            return Ok(0);
        }
        let mut measured = 0;
        for plan in &self.plans {
            for (shape, lines, alike) in shapes(plan) {
                measured += usize::from(self.tune_shape(&alike, &shape, lines)?);
            }
        }
        if measured == 0 {
            return Ok(0);
        }
        for plan in &mut self.plans {
            let capacity = plan.limits.capacity;
            for dispatch in plan.ops.iter_mut().flatten() {
                dispatch.variants = variants(&self.gpu, &dispatch.launch, capacity);
            }
        }
        if let Some(file) = &self.tuning {
            let choices = self.gpu.table().measured.clone();
            if let Err(error) = write(file, &self.gpu.info, &choices) {
                tracing::warn!(file = %file.display(), %error, "measured choices are not kept");
            }
        }
        self.gpu.check()?;
        Ok(measured)
    }

    /// Measures the tiles of a shape, unless that was done. Another than the default has to be clearly faster.
    fn tune_shape(&self, alike: &[&Dispatch], shape: &Shape, lines: u32) -> Result<bool> {
        let table = self.gpu.table().clone();
        let candidates = shape.candidates(table.memory);
        let known = table.measured.contains_key(&shape.key()) || table.measured.len() >= MOST_CHOICES;
        if known || candidates.len() < 2 {
            return Ok(false);
        }
        self.write_step(&step(&alike[0].launch, lines));
        let mut best: Option<(u64, Tile)> = None;
        for tile in candidates {
            let ticks = self.ticks(alike, tile, lines)?;
            if best.is_none_or(|(least, _)| ticks < least / 50 * 49) {
                best = Some((ticks, tile));
            }
        }
        if let Some((_, tile)) = best {
            self.gpu.table().measured.insert(shape.key(), tile);
        }
        Ok(best.is_some())
    }

    /// Timestamp ticks that launches of a shape over so many lines take in a tile, each in its turn.
    fn ticks(&self, alike: &[&Dispatch], tile: Tile, lines: u32) -> Result<u64> {
        let missing = || self.gpu.error("no timestamps");
        let launch: &Launch = &alike[0].launch;
        let runs = alike.len().clamp(RUNS, TURNS);
        let (kernel, constants) = (tile.kernel(launch.kernel), launch.constants_in(tile));
        let pipeline = self.gpu.pipelines.pipeline(&self.gpu, launch, kernel, &constants);
        let mut stamps = Stamps::new(&self.gpu, runs).ok_or_else(missing)?;
        let [x, y, z] = self.fold(launch.grid.workgroups(u64::from(lines), tile, Division::default()))?;
        let mut encoder = self.encoder();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &self.step_bindings[0], &[]);
        for dispatch in alike.iter().cycle().take(runs) {
            pass.set_bind_group(1, &dispatch.bindings, &[]);
            stamps.write(&mut pass);
            pass.dispatch_workgroups(x, y, z);
        }
        stamps.finish(&mut pass);
        drop(pass);
        let (staging, _) = stamps.resolve(&self.gpu, &mut encoder);
        let submission = self.gpu.queue.submit([encoder.finish()]);
        let mapped = Mapped::all(staging);
        self.gpu.wait(Some(submission))?;
        let stamps: Vec<u64> = bytemuck::pod_collect_to_vec(&mapped.finish(&self.gpu)?.0);
        let mut spans: Vec<u64> = stamps.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
        spans.sort_unstable();
        Ok(spans.get(spans.len() / 2).copied().unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::tiles;

    fn info(name: &str) -> DeviceInfo {
        DeviceInfo {
            name: name.into(),
            driver: "driver 1".into(),
            pci: String::new(),
            api: "vulkan",
            software: true,
            subgroups: None,
            f16: false,
            coherent: false,
            cooperative: false,
            timestamps: true,
            binding: 0,
            buffer: 0,
            workgroups: 0,
        }
    }

    #[test]
    fn choices_are_kept_per_device_and_driver() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deeper/tuning.json");
        let [one, other] = [tiles()[0], tiles()[1]].map(|tile| Choices::from([("a shape".to_owned(), tile)]));
        assert!(read(&file, &info("one")).is_empty());
        write(&file, &info("one"), &one).unwrap();
        write(&file, &info("other"), &other).unwrap();
        assert_eq!((read(&file, &info("one")), read(&file, &info("other"))), (one, other));
        assert!(read(&file, &DeviceInfo { driver: "driver 2".into(), ..info("one") }).is_empty());
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn unreadable_and_hostile_files_are_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tuning.json");
        let long = format!("{{\"devices\":{{}}{}}}", " ".repeat(MOST_BYTES as usize));
        let deep = "[".repeat(100_000);
        let negative = r#"{"devices":{"one, driver 1":{"x":{"rows":-1,"outputs":64,"lane_rows":8}}}}"#;
        let many = format!(
            "{{\"devices\":{{{}\"z\":{{}}}}}}",
            (0..99).map(|i| format!("\"{i}\":{{}},")).collect::<String>()
        );
        for text in ["", "{", "[]", "\u{0}", negative, &long, &deep, &many] {
            fs::write(&file, text).unwrap();
            assert!(load(&file).is_err(), "{:.40}", text);
            assert!(read(&file, &info("one")).is_empty());
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert!(read(&file, &info("one")).is_empty());
        assert!(read(dir.path(), &info("one")).is_empty(), "a folder");
        write(&file, &info("one"), &Choices::new()).unwrap();
        assert!(load(&file).is_ok());
    }
}
