//! The life of the guest.

use std::cell::Cell;
use std::io;
use std::path::Path;

use super::answer::Answer;
use super::machine;
use super::overlay::Overlays;
use crate::boot::Error;
use crate::boot::disk::{BUDGET, Region};
use crate::boot::menu::Parts;

/// The disk that is read, and the one that the answer goes to.
const DISK: &str = "/dev/vda";
const ANSWER: &str = "/dev/vdb";

/// As the init of a guest: finds what the first disk boots, writes it on the second, or why there is nothing, and powers
/// the machine off.
///
/// # Errors
/// This process is no init: a host neither mounts a disk like this nor writes to its own.
pub fn serve() -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::other("this is for the init of a guest that the recipe boot-reader has made"));
    }
    let result = machine::set_up().and_then(|()| attend(Path::new(DISK), Path::new(ANSWER)));
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
        cause => cause.to_string(),
    })
}
