//! What an image costs, and what it ends in.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use innkeeper_images::boot::{self, BootSource, Error};

use crate::heap;

const MAX_TIME: Duration = Duration::from_secs(2);
const MAX_MEMORY: usize = 64 << 20;

/// What is found, to compare.
pub type Answer = (Vec<u8>, Vec<u8>, String);

pub fn answer(source: &BootSource) -> Answer {
    let read = |file: &fs::File| {
        let mut contents = Vec::new();
        let mut file = file.try_clone().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut contents).unwrap();
        contents
    };
    (read(&source.kernel), source.initrd.as_ref().map(read).unwrap_or_default(), source.command_line.clone())
}

/// What has happened to all images so far.
#[derive(Default)]
pub struct Tally {
    pub errors: usize,
    pub unharmed: usize,
    pub slowest: Duration,
    pub largest: usize,
    /// What boots and should not.
    pub wrong: Vec<String>,
}

impl Tally {
    /// Looks at a broken image. `whole` is what the unbroken one boots; without it there has to be an error.
    pub fn check(&mut self, name: &str, disk: &[u8], whole: Option<&Answer>) -> Option<Error> {
        let begun = Instant::now();
        let (result, memory) = heap::peak(|| boot::find(&disk));
        let time = begun.elapsed();
        assert!(time < MAX_TIME, "{name}: {time:?}");
        assert!(memory < MAX_MEMORY, "{name}: {memory} bytes");
        self.slowest = self.slowest.max(time);
        self.largest = self.largest.max(memory);
        match result {
            Err(error) => {
                let message = error.to_string();
                assert!(message.len() > 20 && message.len() < 1000, "{name}: {message:?}");
                assert!(!message.chars().any(char::is_control), "{name}: {message:?}");
                self.errors += 1;
                if std::env::var_os("SHOW").is_some() {
                    println!("{name}: {message}");
                }
                Some(error)
            }
            Ok(source) => {
                let found = answer(&source);
                assert!(source.kernel.metadata().unwrap().size() <= boot::MAX_KERNEL, "{name}");
                if whole.is_none_or(|whole| *whole != found) {
                    self.wrong.push(format!("{name} boots {:?}", source.origin));
                }
                self.unharmed += 1;
                None
            }
        }
    }
}
