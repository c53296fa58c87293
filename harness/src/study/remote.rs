//! The same problem here or on a server: a stated model, nothing in it is measured.

use serde::Serialize;
use wattle_policy::{Grid, carbon};

use crate::table::Table;

/// The server's device.
pub(super) const SERVER: &str = "gpu";
/// What a data centre takes for each joule of its machines (*assumed*: between the 1.1 of the largest and the world's 1.58
/// that the Uptime Institute's survey of 2023 says).
const PUE: f64 = 1.2;
/// Joules per byte through a fixed network: 0.06 kWh/GB in 2015, half as much every two years (Aslan et al. 2018), taken on
/// to 2023.
const NETWORK_J_PER_BYTE: f64 = 0.06 / 16.0 * 3.6e6 / 1e9;
/// Bytes of a request and its answer beside their text (*assumed*: headers and encryption).
const OVERHEAD_BYTES: f64 = 4096.0;
/// There and back \[s\] (*assumed*).
const ROUND_TRIP_S: f64 = 0.05;

/// A problem as it was run here.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub task: String,
    pub format: &'static str,
    /// Here \[J\].
    pub local_j: f64,
    /// The same steps on the server's profile, in the same batches \[J\].
    pub server_j: f64,
    /// Of the prompt and the answer.
    pub text_bytes: f64,
    /// Of the device while it waits \[W\].
    pub waiting_w: f64,
}

/// A problem here and there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Line {
    task: String,
    format: &'static str,
    local_j: f64,
    server_j: f64,
    network_j: f64,
    waiting_j: f64,
    local_mg: f64,
    remote_mg: f64,
}

impl Line {
    pub fn new(problem: &Problem, grid: &Grid) -> Self {
        let server_j = PUE * problem.server_j;
        let network_j = NETWORK_J_PER_BYTE * (problem.text_bytes + OVERHEAD_BYTES);
        let waiting_j = problem.waiting_w * ROUND_TRIP_S;
        let mg = |joules| carbon::operational_mg(joules, grid.mg_per_wh);
        Self {
            task: problem.task.clone(),
            format: problem.format,
            local_j: problem.local_j,
            server_j,
            network_j,
            waiting_j,
            local_mg: mg(problem.local_j),
            remote_mg: mg(server_j + network_j + waiting_j),
        }
    }
}

/// What the model takes for granted.
pub(super) fn assumptions() -> String {
    format!(
        "Here or on a server: the same steps on the profile {SERVER:?} times {PUE} for its building, \
         {NETWORK_J_PER_BYTE:.2e} J per byte through a fixed network with {OVERHEAD_BYTES} bytes beside the text, and the \
         idle power of the device here over a round trip of {ROUND_TRIP_S} s. The same grid for both; a server that \
         waits for others' requests is not charged to this one. A model as small as sprout leaves such a server nearly \
         idle: its launches and static power are most of its energy."
    )
}

/// For a reader.
pub(super) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new([
        "task",
        "weights",
        "here mJ",
        "server mJ",
        "network mJ",
        "waiting mJ",
        "here mg",
        "remote mg",
        "remote of here",
    ]);
    let milli = |joules: f64| format!("{:.3}", joules * 1e3);
    for line in lines {
        table.row([
            line.task.clone(),
            line.format.to_owned(),
            milli(line.local_j),
            milli(line.server_j),
            milli(line.network_j),
            milli(line.waiting_j),
            format!("{:.6}", line.local_mg),
            format!("{:.6}", line.remote_mg),
            format!("{:.2}", line.remote_mg / line.local_mg),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_carbon_by_hand() {
        let problem = Problem {
            task: "t".into(),
            format: "f16",
            local_j: 0.5,
            server_j: 1.0,
            text_bytes: 904.0,
            waiting_w: 2.0,
        };
        let grid = Grid { mg_per_wh: 360.0, ..Grid::named("world").unwrap() };
        let line = Line::new(&problem, &grid);
        // 0.00375 kWh/GB are 1.35e-5 J/byte: 5000 bytes are 67.5 mJ; 2 W × 50 ms are 100 mJ; 360 g/kWh are 0.1 mg/J.
        assert!((line.network_j - 0.0675).abs() < 1e-12 && (line.waiting_j - 0.1).abs() < 1e-12);
        assert!((line.local_mg - 0.05).abs() < 1e-12 && (line.remote_mg - 0.13675).abs() < 1e-12);
        assert!(table(&[line]).rows()[1][8].starts_with("2.7"));
    }
}
