//! The order of versions and of entries, which has to be one: sorting panics where it is not.

#![no_main]

use std::cmp::Ordering;

use innkeeper_images::boot::bls::{self, Entry};
use innkeeper_images::boot::version;
use libfuzzer_sys::fuzz_target;

/// As many lines are sorted, in which a few panic no more, and as many are compared each with each.
const MOST: usize = 32;
const MOST_COMPARED: usize = 6;

fn check_order<T>(items: &[T], compare: impl Fn(&T, &T) -> Ordering) {
    let few = &items[..items.len().min(MOST_COMPARED)];
    for a in few {
        assert_eq!(compare(a, a), Ordering::Equal);
        for b in few {
            let first = compare(a, b);
            assert_eq!(first, compare(b, a).reverse());
            for c in few {
                let second = compare(b, c);
                if first == second || second == Ordering::Equal {
                    assert_eq!(compare(a, c), first);
                }
            }
        }
    }
    let mut sorted: Vec<_> = items.iter().collect();
    sorted.sort_by(|a, b| compare(a, b));
    assert!(sorted.is_sorted_by(|a, b| compare(a, b).is_le()));
}

/// An entry that has a line as its identifier, its version, or something else.
fn entry(line: &str) -> Option<Entry> {
    let (kind, text) = line.split_at_checked(1)?;
    let (file, contents) = match kind {
        "k" => (text.to_owned(), "sort-key a\nmachine-id b".to_owned()),
        "v" => ("x".into(), format!("sort-key a\nversion {text}")),
        "s" => ("x".into(), format!("sort-key {text}")),
        "m" => ("x".into(), format!("sort-key a\nmachine-id {text}\nversion {text}")),
        _ => (line.to_owned(), String::new()),
    };
    Entry::parse(&format!("{file}.conf"), &format!("linux /k\n{contents}"))
}

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    let lines: Vec<&str> = text.lines().take(MOST).collect();
    check_order(&lines, |a, b| version::compare(a, b));
    let entries: Vec<_> = lines.iter().filter_map(|line| entry(line)).collect();
    check_order(&entries, bls::order);
});
