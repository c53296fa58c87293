//! The policy against fixed choices, chance and the best there is.

use std::io::Write;
use std::path::Path;

use super::page::Page;
use super::plot::{self, Titles};
use super::{SIMULATED, Subject};
use crate::commands::rows_table;
use crate::error::Result;
use crate::meter::mean_sd;
use crate::scores::Row;
use crate::table::Table;

/// Who chooses, and what it earns.
type Chooser = (&'static str, fn(&Row) -> f64);
const CHOOSERS: [Chooser; 5] = [
    ("oracle", |row| row.oracle_reward),
    ("policy", |row| row.policy_reward),
    ("fewest layers", |row| row.always_min_reward),
    ("most layers", |row| row.always_max_reward),
    ("random", |row| row.random_reward),
];

/// Runs it.
pub(super) fn run(subject: &Subject, dir: &Path, out: &mut dyn Write) -> Result<()> {
    let rows = subject.rows();
    let mut page =
        Page::new("baselines", "A learned policy against fixed choices, chance and the best there is");
    page.note(SIMULATED);
    page.note(verdict(&rows));
    let names = subject.devices();
    let regrets = |pick: fn(&Row) -> f64| {
        let device = |name: &String| {
            let own = rows.iter().filter(|row| &row.device == name);
            mean_sd(&own.map(|row| row.regret_of(pick(row))).collect::<Vec<_>>())
        };
        names.iter().map(device).collect::<Vec<_>>()
    };
    let bars: Vec<_> =
        CHOOSERS[1..].iter().map(|(name, pick)| ((*name).to_owned(), regrets(*pick))).collect();
    let title = "(oracle − choice) / (oracle − worst), mean ± sd over models and tasks";
    page.plot("Regret", plot::bars(Titles { title, x: "device", y: "regret" }, &names, &bars)?);
    let mut table = Table::new(["choice", "mean reward", "mean regret", "worst regret"]);
    for (name, pick) in CHOOSERS {
        let regrets: Vec<f64> = rows.iter().map(|row| row.regret_of(pick(row))).collect();
        let worst = regrets.iter().copied().fold(0.0, f64::max);
        let reward = mean_sd(&rows.iter().map(pick).collect::<Vec<_>>())[0];
        let percent = |share: f64| format!("{:.2} %", share * 100.0);
        table.row([name.to_owned(), format!("{reward:.4}"), percent(mean_sd(&regrets)[0]), percent(worst)]);
    }
    page.table("All devices, models and tasks", table);
    page.table("One by one", rows_table(&rows));
    page.write(dir, &serde_json::json!({ "rows": rows }), out)
}

/// Whether learning earned its place.
fn verdict(rows: &[Row]) -> String {
    let against = |name: &str, fixed: fn(&Row) -> f64| {
        let count = |test: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| test(row)).count();
        let best = count(&|row| row.regret_of(fixed(row)) <= 1e-9);
        let more = count(&|row| row.policy_reward > fixed(row) + 1e-9);
        let less = count(&|row| row.policy_reward < fixed(row) - 1e-9);
        let worst = rows.iter().map(|row| row.regret_of(fixed(row))).fold(0.0, f64::max);
        format!(
            "Always the {name} layers is the best choice in {best} of {} cells and at worst {:.1} % from it; the policy \
             earns more in {more} and less in {less}.",
            rows.len(),
            worst * 100.0
        )
    };
    let worst = rows.iter().map(|row| row.regret).fold(0.0, f64::max);
    format!(
        "{} {} The policy is at worst {:.1} % from the best choice.",
        against("fewest", |row| row.always_min_reward),
        against("most", |row| row.always_max_reward),
        worst * 100.0
    )
}
