//! Shows on standard error how far a long work is: moving to people, and as lines to a log.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use crate::import::{self, Imported, Stage};
use crate::recipe;

/// Shows an import: a bar to people, a line for each tenth to a log.
pub struct ImportDisplay {
    /// The image's name.
    name: String,
    begun: Instant,
    terminal: bool,
    step: &'static str,
    /// The bytes of this stage, and how many tenths of them were shown.
    total: u64,
    tenths: u64,
    bar: Option<ProgressBar>,
}

impl ImportDisplay {
    /// For an import into this directory.
    pub fn new(target: &Path) -> Self {
        let name = target.file_name().unwrap_or(target.as_os_str()).to_string_lossy().into_owned();
        let terminal = std::io::stderr().is_terminal();
        Self { name, begun: Instant::now(), terminal, step: "", total: 0, tenths: 0, bar: None }
    }

    /// Says what was imported, if that worked.
    pub fn end(&mut self, imported: Option<&Imported>) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if let Some(Imported { size, allocated, .. }) = imported {
            let (size, allocated) = (BinaryBytes(*size), BinaryBytes(*allocated));
            let seconds = self.begun.elapsed().as_secs_f64();
            eprintln!("{}: a disk of {size}, which takes {allocated}; {seconds:.0} s", self.name);
        }
    }
}

impl import::Progress for ImportDisplay {
    fn begin(&mut self, stage: Stage, total: u64) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.step = match stage {
            Stage::Check => "checking",
            Stage::Copy => "copying",
        };
        (self.total, self.tenths) = (total, 0);
        if self.terminal {
            let template =
                "{prefix}: {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(total).with_prefix(self.name.clone()).with_message(self.step);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
    }

    fn done(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        let tenths = (u128::from(bytes) * 10).checked_div(u128::from(self.total)).unwrap_or_default();
        let tenths = u64::try_from(tenths).unwrap_or_default();
        if tenths > self.tenths {
            self.tenths = tenths;
            eprintln!("{}: {} {tenths}0 %", self.name, self.step);
        }
    }

    fn note(&mut self, note: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{}: {note}", self.name)),
            None => eprintln!("{}: {note}", self.name),
        }
    }
}

/// Shows a build: a spinner to people, a line for each step to a log.
#[derive(Default)]
pub struct BuildDisplay {
    image: String,
    begun: Option<Instant>,
    spinner: Option<ProgressBar>,
}

impl recipe::Progress for BuildDisplay {
    fn begin(&mut self, image: &str) {
        self.image = image.into();
        self.begun = Some(Instant::now());
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})");
            let spinner = ProgressBar::new_spinner().with_prefix(self.image.clone());
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    fn step(&mut self, step: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(step.to_owned()),
            None => eprintln!("{}: {step}", self.image),
        }
    }

    fn end(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        let seconds = self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        eprintln!("{}: {seconds:.0} s", self.image);
    }
}
