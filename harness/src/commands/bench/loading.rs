//! How long those who run wait while adapters are loaded, replaced and forgotten.

use std::sync::mpsc;
use std::time::Instant;

use wattle_engine::{Client, Control, Request, Service, ServiceOptions};

use super::runner::Runner;
use crate::error::{Error, Result};
use crate::meter::median_and_spread;
use crate::random_adapter::random_adapter;

/// Tokens before the first change.
const BEFORE: usize = 16;

/// One adapter loaded, replaced and forgotten while a path runs, in multiples of the usual time between two tokens.
pub(super) struct Changes {
    /// The longest time between two tokens meanwhile.
    pub pause: f64,
    /// Until whoever asked for the changes had them all; where the path ended before, `pause` is of a part of that time.
    pub whole: f64,
}

/// Once a repetition after one that is not counted. The runner has adapters.
pub(super) fn changes(mut runner: Runner, repetitions: u32) -> Result<Vec<Changes>> {
    // One slot must be free: more would make everything anew.
    runner.forget_one()?;
    let (ids, context) = (runner.ids(1), runner.context());
    let (engine, weights, rank) = runner.into_parts();
    let service = Service::start(engine, ServiceOptions::default())?;
    let client = service.client();
    let mut all = Vec::new();
    for repetition in 0..=u64::from(repetitions) {
        let [one, other] = [0, 1].map(|odd| random_adapter(&weights, rank, 100 + 2 * repetition + odd));
        let request = Request { ignore_eos: true, ..Request::new(ids.clone(), context - 1) };
        let changes = change(&client, request, |client| {
            let id = client.add_adapter(one)?;
            client.swap_adapter(id, other)?;
            Ok(client.remove_adapter(id)?)
        })?;
        if repetition > 0 {
            all.push(changes);
        }
    }
    Ok(all)
}

fn change(client: &Client, request: Request, changes: impl FnOnce(&Client) -> Result<()>) -> Result<Changes> {
    let (sender, times) = mpsc::channel();
    let path = client.submit_with(request, move |_| {
        sender.send(Instant::now()).map_or(Control::Cancel, |()| Control::Continue)
    })?;
    let mut all: Vec<Instant> = times.iter().take(BEFORE).collect();
    let from = Instant::now();
    changes(client)?;
    let to = Instant::now();
    // As far as the token that was under way when the last change was done.
    for time in &times {
        all.push(time);
        if time >= to {
            break;
        }
    }
    path.cancel();
    all.extend(times.iter());
    path.wait()?;
    let gap = |pair: &[Instant]| (pair[1] - pair[0]).as_secs_f64();
    let (usual, _) = median_and_spread(all[..BEFORE.min(all.len())].windows(2).map(gap).collect());
    let meanwhile = all.windows(2).filter(|pair| pair[0] < to && pair[1] > from);
    let longest = meanwhile.map(gap).fold(f64::NAN, f64::max);
    if longest.is_nan() {
        let reason = "the path was at its end before an adapter was loaded: more positions";
        return Err(Error::value("-p, -n", reason));
    }
    Ok(Changes { pause: longest / usual, whole: (to - from).as_secs_f64() / usual })
}
