//! Table 1 of carbon-first LoRA scaling, beside the paper's figures.

use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::page::Page;
use super::plot::{self, Titles};
use super::{SIMULATED, Subject};
use crate::error::Result;
use crate::meter::mean_sd;
use crate::scores::Row;
use crate::table::Table;

/// What the paper reports of a device.
struct Reported {
    device: &'static str,
    inf_per_j: f64,
    performance_per_mg: f64,
    layers: f64,
}

/// Table 1 and its caption.
const REPORTED: [Reported; 4] = [
    Reported { device: "smartwatch", inf_per_j: 20.5, performance_per_mg: 0.142, layers: 1.0 },
    Reported { device: "ar-glasses", inf_per_j: 9.9, performance_per_mg: 0.340, layers: 2.0 },
    Reported { device: "vr-headset", inf_per_j: 9.9, performance_per_mg: 0.384, layers: 3.0 },
    Reported { device: "tablet", inf_per_j: 6.4, performance_per_mg: 0.412, layers: 2.0 },
];

/// A device's means over models and tasks.
#[derive(Clone, Debug, Serialize)]
struct Device {
    device: String,
    cells: usize,
    /// Means and standard deviations over models and tasks.
    inf_per_j: [f64; 2],
    performance_per_mg: [f64; 2],
    layers: [f64; 2],
    oracle_layers: [f64; 2],
    operational_mg: [f64; 2],
    embodied_mg: [f64; 2],
    paper_inf_per_j: Option<f64>,
    paper_performance_per_mg: Option<f64>,
    paper_layers: Option<f64>,
}

impl Device {
    fn new(device: &str, rows: &[&Row]) -> Self {
        let of = |pick: fn(&Row) -> f64| mean_sd(&rows.iter().map(|row| pick(row)).collect::<Vec<_>>());
        let paper = REPORTED.iter().find(|reported| reported.device == device);
        Self {
            device: device.to_owned(),
            cells: rows.len(),
            inf_per_j: of(|row| row.inf_per_j),
            performance_per_mg: of(|row| row.performance_per_mg),
            layers: of(|row| row.layers),
            oracle_layers: of(|row| row.oracle_layers),
            operational_mg: of(|row| row.operational_mg),
            embodied_mg: of(|row| row.embodied_mg),
            paper_inf_per_j: paper.map(|paper| paper.inf_per_j),
            paper_performance_per_mg: paper.map(|paper| paper.performance_per_mg),
            paper_layers: paper.map(|paper| paper.layers),
        }
    }
}

/// Runs it.
pub(super) fn run(subject: &Subject, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rows = subject.rows();
    // The paper's grid: what the shipped model adds has no counterpart there.
    let stand_in: Vec<&Row> = rows.iter().filter(|row| !row.measured_quality).collect();
    let device = |device: &String| {
        Device::new(device, &stand_in.iter().copied().filter(|row| &row.device == device).collect::<Vec<_>>())
    };
    let names = subject.devices();
    let devices: Vec<Device> = names.iter().map(device).collect();
    let mut page = Page::new("table", "Best layers, inferences per joule and performance per mg, by device");
    page.note(SIMULATED);
    page.note(
        "An inference here is a prompt of 24 to 96 tokens and 10 to 28 new ones (lengths that the policy was not trained \
         on); the paper does not define its own. Its inferences per joule and its mg are not reproduced: its energy per \
         inference has no stated lengths, precision or meter, and more than 99.9 % of its 46.6 mg is the device's \
         making, which rests on a number of inferences per lifetime that it does not give. Its best layers, each the \
         fewest that it allows, are not reproduced either: a layer's LoRA takes little of an inference's energy in the \
         engine's plans (see the study `frontier`), and the scores that stand in for the paper's rise with every layer.",
    );
    let both = |ours: fn(&Device) -> [f64; 2], paper: fn(&Device) -> Option<f64>| {
        [
            ("simulated, mean ± sd".to_owned(), devices.iter().map(ours).collect()),
            ("paper".to_owned(), devices.iter().map(|d| [paper(d).unwrap_or(0.0), 0.0]).collect()),
        ]
    };
    let titles = Titles { title: "Inferences per joule", x: "device", y: "1/J" };
    page.plot(
        "Inferences per joule",
        plot::bars(titles, &names, &both(|d| d.inf_per_j, |d| d.paper_inf_per_j))?,
    );
    let titles = Titles { title: "Layers chosen", x: "device", y: "layers" };
    page.plot("Layers", plot::bars(titles, &names, &both(|d| d.layers, |d| d.paper_layers))?);
    page.table("Means over four models and three tasks", table(&devices));
    page.write(dir, &serde_json::json!({ "devices": devices, "rows": rows }), out)
}

fn table(devices: &[Device]) -> Table {
    let mut table = Table::new([
        "device",
        "layers",
        "oracle's",
        "paper's",
        "inf/J",
        "paper's",
        "of paper's",
        "perf/mg",
        "paper's",
        "op. mg",
        "emb. mg",
    ]);
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    for d in devices {
        let spread = |[mean, sd]: [f64; 2]| format!("{mean:.2} ± {sd:.2}");
        let ratio = d.paper_inf_per_j.map(|paper| format!("{:.2}", d.inf_per_j[0] / paper));
        table.row([
            d.device.clone(),
            spread(d.layers),
            spread(d.oracle_layers),
            number(d.paper_layers),
            spread(d.inf_per_j),
            number(d.paper_inf_per_j),
            ratio.unwrap_or_default(),
            format!("{:.5}", d.performance_per_mg[0]),
            number(d.paper_performance_per_mg),
            format!("{:.4}", d.operational_mg[0]),
            format!("{:.2}", d.embodied_mg[0]),
        ]);
    }
    table
}
