//! Tables for people: columns without borders, times as ages.

use comfy_table::Table;
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::answer::text;

/// What a cell says of a resource at a time.
pub type Cell = fn(&Value, Timestamp) -> String;

/// How resources of a kind look.
pub struct View {
    /// The element that has the id.
    pub id: &'static str,
    /// The columns' titles and contents.
    pub columns: &'static [(&'static str, Cell)],
}

/// What is shown where there is nothing.
const NOTHING: &str = "-";

/// The space between two columns.
const GAP: u16 = 3;

/// A table with a row for each resource. An empty one is its titles.
pub fn table(view: &View, items: &[Value], now: Timestamp) -> String {
    let titles = view.columns.iter().map(|(title, _)| (*title).to_owned());
    let rows = items.iter().map(|item| view.columns.iter().map(|(_, cell)| shown(cell(item, now))).collect());
    columns(std::iter::once(titles.collect()).chain(rows))
}

/// Rows under one another, a line each.
pub fn columns(rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    format!("{}\n", table.trim_fmt())
}

/// The ids, a line each.
pub fn ids(view: &View, items: &[Value]) -> String {
    lines(items.iter().map(|item| text(item, view.id)))
}

/// Texts, a line each.
pub fn lines<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts.into_iter().map(|text| format!("{text}\n")).collect()
}

/// A cell's text on one line, and visible.
fn shown(text: String) -> String {
    let text = plain(&text);
    if text.is_empty() { NOTHING.to_owned() } else { text }
}

/// A text without control characters, which a tag may have and a terminal obeys.
pub fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// How long ago a time was, such as `3 minutes ago`. A time that is none is shown as it is.
pub fn age(time: &str, now: Timestamp) -> String {
    const UNITS: [(i64, &str); 5] =
        [(365 * 86_400, "year"), (7 * 86_400, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute")];
    let Ok(then) = time.parse::<Timestamp>() else { return time.to_owned() };
    // The clocks of host and agent are one, but for a tunnel's sake the future is now.
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (count, unit) = UNITS
        .into_iter()
        .find(|(length, _)| seconds >= *length)
        .map_or((seconds, "second"), |(length, unit)| (seconds / length, unit));
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

/// MiB as people say it.
pub fn memory(mib: u64) -> String {
    if mib.is_multiple_of(1024) {
        return format!("{} GiB", mib / 1024);
    }
    if mib.is_multiple_of(512) {
        return format!("{}.5 GiB", mib / 1024);
    }
    format!("{mib} MiB")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ages_are_told_in_the_largest_unit() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        for (time, said) in [
            ("2026-11-21T10:00:00.000Z", "0 seconds ago"),
            ("2026-11-21T09:59:59.000Z", "1 second ago"),
            ("2026-11-21T09:57:00.000Z", "3 minutes ago"),
            ("2026-11-21T09:00:00.000Z", "1 hour ago"),
            ("2026-11-19T09:00:00.000Z", "2 days ago"),
            ("2026-11-01T10:00:00.000Z", "2 weeks ago"),
            ("2024-11-01T10:00:00.000Z", "2 years ago"),
            ("2026-11-21T10:00:09.000Z", "0 seconds ago"),
            ("", ""),
            ("soon", "soon"),
        ] {
            assert_eq!(age(time, now), said, "{time}");
        }
    }

    #[test]
    fn tables_have_no_borders_and_no_holes() {
        let view = View {
            id: "a",
            columns: &[
                ("ID", |item, _| text(item, "a").into()),
                ("NAME", |item, _| text(item, "b").into()),
                ("STATE", |item, _| text(item, "c").into()),
            ],
        };
        let items = [json!({"a": "i-1", "b": "w\u{1b}[1m\nb", "c": "running"}), json!({"a": "i-22"})];
        let expected = "ID     NAME      STATE\ni-1    w [1m b   running\ni-22   -         -\n";
        assert_eq!(table(&view, &items, Timestamp::UNIX_EPOCH), expected);
        assert_eq!(table(&view, &[], Timestamp::UNIX_EPOCH), "ID   NAME   STATE\n");
        assert_eq!(ids(&view, &items), "i-1\ni-22\n");
    }

    #[test]
    fn memory_is_in_gib_where_that_is_short() {
        for (mib, said) in [(512, "0.5 GiB"), (1024, "1 GiB"), (1536, "1.5 GiB"), (64, "64 MiB")] {
            assert_eq!(memory(mib), said);
        }
    }
}
