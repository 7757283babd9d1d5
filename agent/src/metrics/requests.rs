//! Counts the API's requests: how many, with which outcome, and how long they took.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::families as family;
use super::text::series;
use crate::records::Counts;

/// The upper bounds of the buckets, in milliseconds and as Prometheus wants to see them. As texts they are in order.
const BUCKETS: [(u64, &str); 12] = [
    (1, "0.001"),
    (2, "0.002"),
    (5, "0.005"),
    (10, "0.01"),
    (20, "0.02"),
    (50, "0.05"),
    (100, "0.1"),
    (200, "0.2"),
    (500, "0.5"),
    (1000, "1"),
    (2000, "2"),
    (5000, "5"),
];

/// How often an action took how long.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    count: u64,
    nanoseconds: u64,
    /// For each bound, how many took no longer.
    within: [u64; BUCKETS.len()],
}

#[derive(Debug, Default)]
struct Tables {
    /// By action and error code, which is empty if there was none.
    outcomes: BTreeMap<(String, &'static str), u64>,
    times: BTreeMap<String, Times>,
}

/// What was counted since the agent was started.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Tables>);

impl Requests {
    /// Counts a request. `action` has to be one of a few.
    pub fn count(&self, action: &str, code: &'static str, took: Duration) {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *tables.outcomes.entry((action.to_owned(), code)).or_default() += 1;
        let times = tables.times.entry(action.to_owned()).or_default();
        times.count += 1;
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        times.nanoseconds = times.nanoseconds.saturating_add(nanoseconds);
        for (within, (bound, _)) in times.within.iter_mut().zip(BUCKETS) {
            if took <= Duration::from_millis(bound) {
                *within += 1;
            }
        }
    }

    /// All of it, by series.
    pub fn counts(&self) -> Counts {
        let tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = Counts::new();
        for ((action, code), count) in &tables.outcomes {
            let labels = [("action", action.as_str()), ("code", code)];
            counts.insert(series(family::REQUESTS.name, &labels), *count);
        }
        let name = family::REQUEST_SECONDS.name;
        for (action, times) in &tables.times {
            let action = ("action", action.as_str());
            counts.insert(series(&format!("{name}_count"), &[action]), times.count);
            counts.insert(series(&format!("{name}_sum"), &[action]), times.nanoseconds);
            for (within, (_, bound)) in times.within.iter().zip(BUCKETS) {
                counts.insert(series(&format!("{name}_bucket"), &[action, ("le", bound)]), *within);
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_action_outcome_and_time() {
        let requests = Requests::default();
        requests.count("A", "", Duration::from_millis(1));
        requests.count("A", "AuthFailure", Duration::from_micros(1500));
        requests.count("A", "AuthFailure", Duration::from_secs(60));
        let counts = requests.counts();
        for (series, count) in [
            ("innkeeper_requests_total{action=\"A\",code=\"\"}", 1),
            ("innkeeper_requests_total{action=\"A\",code=\"AuthFailure\"}", 2),
            ("innkeeper_request_seconds_count{action=\"A\"}", 3),
            ("innkeeper_request_seconds_sum{action=\"A\"}", 60_002_500_000),
            ("innkeeper_request_seconds_bucket{action=\"A\",le=\"0.001\"}", 1),
            ("innkeeper_request_seconds_bucket{action=\"A\",le=\"0.002\"}", 2),
            ("innkeeper_request_seconds_bucket{action=\"A\",le=\"5\"}", 2),
        ] {
            assert_eq!(counts.get(series), Some(&count), "{series}");
        }
        let bounds: Vec<&str> = BUCKETS.iter().map(|(_, text)| *text).collect();
        assert!(bounds.is_sorted() && BUCKETS.is_sorted());
        assert!(BUCKETS.iter().all(|(ms, text)| text.parse() == Ok(*ms as f64 / 1000.0)));
    }
}
