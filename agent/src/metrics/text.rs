//! Prometheus's text form, version 0.0.4. Values come from records and from VMMs, so there is nothing here that holds
//! them, as there would be in a client library: just their writing down.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::families::{ALL, Family, Kind, Unit, of_series};

/// The form's media type.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics in the making.
#[derive(Debug, Default)]
pub struct Text {
    /// The lines of each metric, by its name, each with the text that it is sorted by.
    lines: BTreeMap<&'static str, Vec<(String, f64)>>,
}

/// A series: a name, and labels with values.
pub fn series(name: &str, labels: &[(&str, &str)]) -> String {
    let mut text = name.to_owned();
    for (number, (label, value)) in labels.iter().enumerate() {
        text.push(if number == 0 { '{' } else { ',' });
        // Whoever gave a value may have put anything into it.
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(text, "{label}=\"{value}\"");
    }
    if !labels.is_empty() {
        text.push('}');
    }
    text
}

impl Text {
    fn add(&mut self, family: &'static Family, series: String, value: f64) {
        self.lines.entry(family.name).or_default().push((series, value));
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, family: &'static Family, labels: &[(&str, &str)], value: f64) {
        debug_assert_eq!(family.kind, Kind::Gauge);
        self.add(family, series(family.name, labels), value);
    }

    /// Adds a counter.
    pub fn counter(&mut self, family: &'static Family, labels: &[(&str, &str)], value: f64) {
        debug_assert_eq!(family.kind, Kind::Counter);
        self.add(family, series(family.name, labels), value);
    }

    /// Adds what was counted of a series. One that is not known is from another version, and left out.
    pub fn total(&mut self, series: &str, total: u64) {
        let Some(family) = of_series(series) else { return };
        let is_time = family.unit == Unit::Nanoseconds
            && (family.kind == Kind::Counter
                || series.strip_prefix(family.name).is_some_and(|part| part.starts_with("_sum")));
        self.add(family, series.to_owned(), if is_time { total as f64 / 1e9 } else { total as f64 });
    }

    /// All of it. The last bucket of a histogram, that of everything, is its count.
    pub fn render(self) -> String {
        let mut text = String::new();
        for family in ALL {
            let Some(mut lines) = self.lines.get(family.name).cloned() else { continue };
            lines.sort_by(|(one, _), (other, _)| one.cmp(other));
            let Family { name, help, .. } = family;
            let kind = match family.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (series, value) in lines {
                let _ = writeln!(text, "{series} {value}");
                let count = series.strip_prefix(name).and_then(|rest| rest.strip_prefix("_count"));
                if let (Kind::Histogram, Some(labels)) = (family.kind, count) {
                    let labels =
                        labels.strip_suffix('}').map_or("{".to_owned(), |labels| format!("{labels},"));
                    let _ = writeln!(text, "{name}_bucket{labels}le=\"+Inf\"}} {value}");
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::families as family;

    #[test]
    fn labels_can_have_anything_in_them() {
        assert_eq!(series("a", &[]), "a");
        assert_eq!(series("a", &[("b", "c\"d\\e\nf"), ("g", "")]), r#"a{b="c\"d\\e\nf",g=""}"#);
    }

    #[test]
    fn a_metric_has_one_head_and_its_series() {
        let mut text = Text::default();
        text.total("innkeeper_instance_cpu_seconds_total{mode=\"user\"}", 1_500_000_000);
        text.gauge(&family::INSTANCES, &[("state", "running")], 2.0);
        text.gauge(&family::INSTANCES, &[("state", "pending")], 0.0);
        text.total("innkeeper_request_seconds_bucket{action=\"a\",le=\"0.01\"}", 1);
        text.total("innkeeper_request_seconds_count{action=\"a\"}", 3);
        text.total("innkeeper_request_seconds_sum{action=\"a\"}", 250_000_000);
        text.total("innkeeper_of_yesterday_total", 3);
        let expected = "\
# HELP innkeeper_request_seconds How long requests to the API took.
# TYPE innkeeper_request_seconds histogram
innkeeper_request_seconds_bucket{action=\"a\",le=\"0.01\"} 1
innkeeper_request_seconds_count{action=\"a\"} 3
innkeeper_request_seconds_bucket{action=\"a\",le=\"+Inf\"} 3
innkeeper_request_seconds_sum{action=\"a\"} 0.25
# HELP innkeeper_instances How many instances are in a state.
# TYPE innkeeper_instances gauge
innkeeper_instances{state=\"pending\"} 0
innkeeper_instances{state=\"running\"} 2
# HELP innkeeper_instance_cpu_seconds_total CPU time of an instance's VMM, in user mode, where its guest runs, and in system mode.
# TYPE innkeeper_instance_cpu_seconds_total counter
innkeeper_instance_cpu_seconds_total{mode=\"user\"} 1.5
";
        assert_eq!(text.render(), expected);
    }
}
