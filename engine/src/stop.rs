//! Stop texts in a stream: text that might be the beginning of one is held back.

/// Watches a text as it grows.
#[derive(Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Watches for any of `stops`; empty ones never match.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes new text; returns what may be shown, and whether a stop text appeared (it is not shown).
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| self.partial(stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back and turned out to be no stop text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The longest proper prefix of `stop`, in bytes, with which the held text ends.
    fn partial(&self, stop: &str) -> usize {
        let ends = stop.char_indices().map(|(at, _)| at).rev();
        ends.into_iter().find(|&at| self.held.ends_with(&stop[..at])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_text_across_pieces_is_found_and_its_beginning_is_held_back() {
        let mut matcher = StopMatcher::new(&["\n\nQ:".into(), "END".into()]);
        assert_eq!(matcher.push("four E"), ("four ".into(), false));
        assert_eq!(matcher.push("N"), (String::new(), false));
        assert_eq!(matcher.push("ough\n"), ("ENough".into(), false));
        assert_eq!(matcher.push("\nQ: next"), (String::new(), true));
    }

    #[test]
    fn held_text_that_was_no_stop_comes_out_at_the_end() {
        let mut matcher = StopMatcher::new(&["äö".into(), String::new()]);
        assert_eq!(matcher.push("xä"), ("x".into(), false));
        assert_eq!(matcher.finish(), "ä");
    }
}
