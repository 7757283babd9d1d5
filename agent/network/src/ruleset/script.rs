//! What to tell nftables, as the text that `nft -f` reads and carries out as one transaction.

use std::fmt::Write;

use super::{FIXED, Family, Ruleset, TABLE};

impl Ruleset {
    /// Makes the tables anew, whatever is there. Connections that are tracked stay so.
    pub fn replace(&self) -> String {
        let mut script = String::new();
        for family in [Family::Inet, Family::Arp] {
            let family = family.name();
            // Adding one that is there is no mistake, deleting one that is not would be.
            let _ = writeln!(script, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
        }
        script.push_str(FIXED);
        script.push_str(&Self::default().change_to(self));
        script
    }

    /// Makes another ruleset out of this one. Empty if they are the same.
    pub fn change_to(&self, next: &Self) -> String {
        let mut script = String::new();
        let mut say = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(script, "{line}");
        };
        // What others refer to comes first, and goes last.
        for set in next.member_sets.difference(&self.member_sets) {
            say(format_args!("add set inet {TABLE} {set} {{ type ipv4_addr; }}"));
        }
        for chain in next.chains.keys().filter(|chain| !self.chains.contains_key(*chain)) {
            say(format_args!("add chain inet {TABLE} {chain}"));
        }
        for (chain, rules) in &self.chains {
            if next.chains.get(chain) != Some(rules) {
                say(format_args!("flush chain inet {TABLE} {chain}"));
            }
        }
        for ((family, set), elements) in &self.elements {
            let kept = next.elements.get(&(*family, set.clone()));
            let gone = elements
                .iter()
                .filter(|(key, value)| kept.and_then(|kept| kept.get(*key)) != Some(*value))
                .map(|(key, _)| key.as_str());
            let gone: Vec<&str> = gone.collect();
            if !gone.is_empty() {
                let family = family.name();
                say(format_args!("delete element {family} {TABLE} {set} {{ {} }}", gone.join(", ")));
            }
        }
        for (chain, rules) in &next.chains {
            if self.chains.get(chain) != Some(rules) {
                for rule in rules {
                    say(format_args!("add rule inet {TABLE} {chain} {rule}"));
                }
            }
        }
        for ((family, set), elements) in &next.elements {
            let before = self.elements.get(&(*family, set.clone()));
            let new = elements
                .iter()
                .filter(|(key, value)| before.and_then(|before| before.get(*key)) != Some(*value))
                .map(|(key, value)| match value {
                    Some(value) => format!("{key} : {value}"),
                    None => key.clone(),
                });
            let new: Vec<String> = new.collect();
            if !new.is_empty() {
                let family = family.name();
                say(format_args!("add element {family} {TABLE} {set} {{ {} }}", new.join(", ")));
            }
        }
        for chain in self.chains.keys().filter(|chain| !next.chains.contains_key(*chain)) {
            say(format_args!("delete chain inet {TABLE} {chain}"));
        }
        for set in self.member_sets.difference(&next.member_sets) {
            say(format_args!("delete set inet {TABLE} {set}"));
        }
        script
    }
}
