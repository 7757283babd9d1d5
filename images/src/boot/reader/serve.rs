//! The life of the guest.

use std::cell::Cell;
use std::io;
use std::path::Path;

use super::answer::Answer;
use super::machine;
use super::overlay::Overlays;
use crate::boot::disk::{BUDGET, Region};
use crate::boot::menu::Parts;
use crate::boot::{Error, error};

/// Finds what `disk` boots, and writes it on `answer`, or why there is nothing. Both are devices. As the init of a guest it
/// sets the machine up before, and powers it off at the end.
///
/// # Errors
/// There is no answer: a disk cannot be used, or Linux refuses what it needs.
pub fn serve(disk: &Path, answer: &Path) -> io::Result<()> {
    if !machine::is_init() {
        return attend(disk, answer);
    }
    let result = machine::set_up().and_then(|()| attend(disk, answer));
    // Nobody looks at how an init ends, and a kernel without one crashes.
    if let Err(error) = result {
        eprintln!("there is no answer: {error}");
    }
    machine::power_off();
    Ok(())
}

/// Gives an answer.
fn attend(disk: &Path, answer: &Path) -> io::Result<()> {
    let file = machine::open_disk(answer, true)?;
    let Some(begun) = Answer::begin(&file)? else { return Ok(()) };
    match read(disk, answer, &begun) {
        Ok(()) => Ok(()),
        Err(reason) => {
            eprintln!("{reason}");
            Answer::refuse(&file, &reason)
        }
    }
}

fn read(disk: &Path, answer: &Path, to: &Answer<'_>) -> Result<(), String> {
    let file =
        machine::open_disk(disk, false).map_err(|error| format!("the disk cannot be opened: {error}"))?;
    let budget = Cell::new(BUDGET);
    let mut overlays = Overlays::new(disk, answer);
    let mut give = || {
        let whole = Region::whole(&file, &budget).map_err(Error::Disk)?;
        let (parts, problem) = Parts::of(whole, Some(&mut overlays))?;
        to.give(parts.choose(problem)?)
    };
    give().map_err(|cause: Error| match cause {
        // Here it is no memory.
        Error::Memory(cause) => format!("the answer cannot be written: {cause}"),
        cause => error::chain(&cause),
    })
}
