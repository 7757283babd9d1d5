//! The order of kernel versions (the UAPI group's Version Format Specification, "Sorting order").

use std::cmp::Ordering;

/// Compares two versions: `6.1.0-9` is less than `6.1.0-10`, and `6.12-rc1` less than `6.12`.
pub fn compare(a: &str, b: &str) -> Ordering {
    // Linux's own release candidates are named in a way that the specification would take for a later version.
    let (a, b) = (a.replace("-rc", "~rc"), b.replace("-rc", "~rc"));
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip_others(a);
        b = skip_others(b);
        // A tilde comes even before the end.
        match (a, b) {
            ([b'~', x @ ..], [b'~', y @ ..]) => {
                (a, b) = (x, y);
                continue;
            }
            ([b'~', ..], _) => return Ordering::Less,
            (_, [b'~', ..]) => return Ordering::Greater,
            _ => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        if let Some(order) = [b'-', b'^', b'.'].iter().find_map(|mark| by_mark(&mut a, &mut b, *mark)) {
            match order {
                Ordering::Equal => continue,
                order => return order,
            }
        }
        let order = if [a, b].iter().any(|rest| rest.first().is_some_and(u8::is_ascii_digit)) {
            let (x, y) = (digits(&mut a), digits(&mut b));
            x.len().cmp(&y.len()).then_with(|| x.cmp(y))
        } else {
            let (x, y) = (letters(&mut a), letters(&mut b));
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// If either begins with `mark`: both do, and it is left out; or the one that does is less.
fn by_mark(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    match (a.strip_prefix(&[mark]), b.strip_prefix(&[mark])) {
        (Some(x), Some(y)) => {
            (*a, *b) = (x, y);
            Some(Ordering::Equal)
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn skip_others(text: &[u8]) -> &[u8] {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte);
    text.get(text.iter().position(known).unwrap_or(text.len())..).unwrap_or_default()
}

fn take<'a>(text: &mut &'a [u8], is_part: fn(&u8) -> bool) -> &'a [u8] {
    let (part, rest) = text.split_at(text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len()));
    *text = rest;
    part
}

/// A number without its leading zeros, so that a longer one is larger.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let number = take(text, u8::is_ascii_digit);
    number.get(number.iter().position(|digit| *digit != b'0').unwrap_or(number.len())..).unwrap_or_default()
}

fn letters<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    take(text, u8::is_ascii_alphabetic)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_in_order() {
        let ordered = [
            "",
            "0-rescue-0123456789abcdef",
            "5.15.0-91-generic",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.1.0-10-cloud-amd64",
            "6.8.0-31-generic",
            "6.11.4-301.fc41.x86_64",
            "6.11.10-300.fc41.x86_64",
            "6.12~rc1",
            "6.12-rc2",
            "6.12-rc10",
            "6.12",
            "6.12.0",
            "6.12.1",
            "10",
        ];
        for (index, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a} {b}");
            }
        }
        for (a, b) in [("1.02", "1.2"), ("1_2", "1%2"), ("a", "a")] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        // The examples of the specification.
        for (less, more) in
            [("124", "124.1"), ("124-1", "124.1"), ("124~rc1", "124"), ("124^1", "124.1"), ("124-A", "124-a")]
        {
            assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_one(a in "[0-9a-c.~^_-]{0,8}", b in "[0-9a-c.~^_-]{0,8}", c in "[0-9a-c.~^_-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }
    }
}
