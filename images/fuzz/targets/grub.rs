//! GRUB's `grub.cfg`, its environment, and the entries that the script may ask for.

#![no_main]

use std::cell::Cell;

use innkeeper_images::boot::bls::{self, Entry};
use innkeeper_images::boot::entry::{BootEntry, MAX_INITRDS};
use innkeeper_images::boot::grub::{Environment, Error, MAX_WORK, default_entry};
use innkeeper_images_fuzz::{check_message, memory, sections};
use libfuzzer_sys::fuzz_target;

/// The length of a command in bytes. All of it may be quotation marks, which get a mark of their own.
const MOST_COMMAND: usize = 2 * (64 << 10);

fn check(entry: &BootEntry) {
    let BootEntry { kernel, initrds, arguments, .. } = entry;
    assert!(initrds.len() <= MAX_INITRDS);
    let length: usize = initrds.iter().map(String::len).sum();
    assert!(kernel.len() <= MOST_COMMAND && length <= MOST_COMMAND);
    // With marks and a space to each.
    assert!(arguments.as_ref().is_some_and(|arguments| arguments.len() <= 2 * MOST_COMMAND));
}

fuzz_target!(|input: &[u8]| {
    let sections = sections(input);
    let mut sections = sections.iter().map(String::as_str);
    let script = sections.next().unwrap_or_default();
    let environment = sections
        .next()
        .map(|text| Environment::parse(format!("# GRUB Environment Block\n{text}").as_bytes()).unwrap());
    let parse = |text: &str| {
        let (name, text) = text.split_once('\n').unwrap_or((text, ""));
        Entry::parse(name, text)
    };
    let mut entries: Vec<_> = sections.filter_map(parse).collect();
    entries.sort_by(bls::order);
    let run = || -> (Result<Option<BootEntry>, Error>, usize) {
        let work = Cell::new(MAX_WORK);
        let result = default_entry(script, environment.as_ref(), &entries, &work);
        (result, MAX_WORK - work.get())
    };
    let (result, work) = memory::at_most(memory::MOST, run);
    assert!(work >= script.len(), "what is read is work");
    match &result {
        Ok(Some(entry)) => check(entry),
        Ok(None) => {}
        Err(error) => check_message(error),
    }
    assert_eq!((result, work), run(), "it is not the same a second time");
});
