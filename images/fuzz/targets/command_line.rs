//! A kernel's command line, and what is added to it.

#![no_main]

use innkeeper_images::boot::command_line::{Error, MAX_LENGTH, complete};
use libfuzzer_sys::fuzz_target;

/// The parameters of a line, as Linux parts them, and whether the last quote is closed.
fn parameters(line: &str) -> (Vec<String>, bool) {
    let mut parameters = vec![String::new()];
    let mut is_quoted = false;
    for character in line.chars() {
        if character == ' ' && !is_quoted {
            parameters.push(String::new());
            continue;
        }
        is_quoted ^= character == '"';
        parameters.last_mut().unwrap().push(character);
    }
    parameters.retain(|parameter| !parameter.is_empty());
    (parameters, !is_quoted)
}

fn name(parameter: &str) -> String {
    parameter.split('=').next().unwrap().replace('-', "_")
}

fuzz_target!(|input: &[u8]| {
    let arguments = String::from_utf8_lossy(input);
    let own = arguments.replace('\t', " ");
    let own = own.trim();
    let line = match complete(&arguments) {
        Ok(line) => line,
        Err(Error::Control) => {
            assert!(own.chars().any(char::is_control));
            return;
        }
        Err(Error::TooLong(length)) => {
            assert!(length > MAX_LENGTH && length < own.len() + 200, "{length}");
            return;
        }
    };
    assert!(line.len() <= MAX_LENGTH && !line.chars().any(char::is_control));
    let (before, is_closed) = parameters(own);
    let (after, _) = parameters(&line);
    // Behind an open quote everything is one value.
    if !is_closed {
        return;
    }
    let kernel = |all: &[String]| all.iter().take_while(|word| *word != "--").cloned().collect::<Vec<_>>();
    let (kernel_before, kernel_after) = (kernel(&before), kernel(&after));
    // The disk's own stay, in their order and in their part of the line.
    assert_eq!(kernel_before, kernel_after[..kernel_before.len()]);
    assert_eq!(before[kernel_before.len()..], after[kernel_after.len()..]);
    let added = &kernel_after[kernel_before.len()..];
    for parameter in added.iter().filter(|parameter| *parameter != "console=ttyS0") {
        assert!(kernel_before.iter().all(|own| name(own) != name(parameter)), "{parameter} is there twice");
    }
    let is_console = |word: &String| word == "console=ttyS0" || word.starts_with("console=ttyS0,");
    assert!(kernel_after.iter().any(is_console), "there is no console");
    assert_eq!(complete(&line).as_deref(), Ok(&*line), "a second time");
});
