//! Figures of several VMMs side by side: they take turns, samples come in, and a table of medians goes out.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::vmms::Contender;

/// Something that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    /// What it is, and its unit.
    pub name: &'static str,
    pub better: Better,
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

impl Better {
    /// How good `ours` is as a multiple of `theirs`: above 1 is better, whichever way that is.
    fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::Higher => ours / theirs,
            Self::Lower => theirs / ours,
        }
    }
}

/// How good ours must be at least, on every line, as a multiple of a VMM that it is compared with.
pub type Reach = fn(Contender) -> Option<f64>;

/// As good as QEMU.
pub fn as_good_as_qemu(vmm: Contender) -> Option<f64> {
    matches!(vmm, Contender::Qemu | Contender::QemuIothread).then_some(1.0)
}

/// The samples of every line and VMM, in the order of the runs. The first VMM is ours.
#[derive(Debug)]
pub struct Figures {
    vmms: Vec<Contender>,
    reach: Reach,
    lines: Vec<(Line, Vec<Vec<f64>>)>,
    /// How often a VMM's guest had to be started again.
    restarts: Vec<usize>,
}

impl Figures {
    pub fn new(vmms: &[Contender], lines: impl IntoIterator<Item = Line>) -> Self {
        let lines = lines.into_iter().map(|line| (line, vec![Vec::new(); vmms.len()])).collect();
        Self { vmms: vmms.to_vec(), reach: as_good_as_qemu, lines, restarts: vec![0; vmms.len()] }
    }

    /// The same, with something else to reach.
    pub fn reaching(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// Adds a sample, of the VMM and the line with these numbers.
    pub fn add(&mut self, vmm: usize, line: usize, value: f64) {
        self.lines[line].1[vmm].push(value);
    }

    /// Boots a guest with each VMM, and has them take turns on every line, so often and once more to warm up. All of
    /// them run all the time, and are idle while others have their turn. Returns the guests as well.
    ///
    /// A guest that does not deliver is started again and gets a second chance; the report says so.
    pub fn take_turns<G>(
        &mut self,
        runs: usize,
        boot: impl Fn(Contender) -> Result<G>,
        measure: impl Fn(&mut G, usize) -> Result<f64>,
    ) -> Result<Vec<G>> {
        let mut guests = self.vmms.iter().map(|vmm| boot(*vmm)).collect::<Result<Vec<_>>>()?;
        for round in 0..=runs {
            for line in 0..self.lines.len() {
                let mut turns: Vec<_> = guests.iter_mut().enumerate().collect();
                // Nobody always comes after the same one.
                if round % 2 == 1 {
                    turns.reverse();
                }
                for (vmm, guest) in turns {
                    let mut result = measure(guest, line);
                    if let Err(error) = result {
                        eprintln!("{}: {error:#}", self.vmms[vmm].name());
                        self.restarts[vmm] += 1;
                        *guest = boot(self.vmms[vmm])?;
                        result = measure(guest, line);
                    }
                    let what = || format!("{}, {}", self.vmms[vmm].name(), self.lines[line].0.name);
                    let value = result.with_context(what)?;
                    if round > 0 {
                        self.add(vmm, line, value);
                    }
                }
            }
        }
        Ok(guests)
    }

    /// Prints the table, and says whether everything is reached.
    pub fn report(&self) -> ExitCode {
        let (ours, peers) = self.vmms.split_first().expect("ours is one of them");
        let mut head = format!("| | {} |", ours.name());
        let mut rule = "| --- | --- |".to_owned();
        for peer in peers {
            head += &format!(" {} | of it |", peer.name());
            rule += " --- | --- |";
        }
        println!("{head}\n{rule}");
        let bar = |vmm: &Contender| Some(format!("{:.2} of {}", (self.reach)(*vmm)?, vmm.name()));
        let bars: Vec<String> = peers.iter().filter_map(bar).collect();
        let mut missed = Vec::new();
        for (line, samples) in &self.lines {
            let mut row = format!("| {} | {} |", line.name, number(median(&samples[0])));
            for (peer, theirs) in peers.iter().zip(&samples[1..]) {
                let ratios = ratios(line.better, &samples[0], theirs);
                let [lower, ratio, upper] = [0.25, 0.5, 0.75].map(|part| quantile(&ratios, part));
                row += &format!(" {} | {ratio:.2} ({lower:.2} to {upper:.2}) |", number(median(theirs)));
                if (self.reach)(*peer).is_some_and(|reach| ratio < reach) {
                    missed.push(format!("{}: {ratio:.3} of {}", line.name, peer.name()));
                }
            }
            println!("{row}");
        }
        let runs = self.lines.first().map_or(0, |(_, samples)| samples[0].len());
        println!(
            "\nMedians of {runs} runs, in turns. \"of it\": how good {} is, as a multiple of the VMM to the \
             left: the\nmedian of what each run says, and what half of the runs lie between.",
            ours.name()
        );
        if !bars.is_empty() {
            println!("To reach on every line: {}.", bars.join(", "));
        }
        for (vmm, restarts) in self.vmms.iter().zip(&self.restarts).filter(|(_, restarts)| **restarts > 0) {
            println!("{} did not deliver, and was started again: {restarts} times.", vmm.name());
        }
        if self.restarts[0] > 0 {
            missed.push("a guest of ours that stays up".into());
        }
        if missed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("Missed:\n  {}", missed.join("\n  "));
        ExitCode::FAILURE
    }
}

/// What each run says about how good ours is. Their median is what counts, and not the ratio of medians: the two
/// samples of a run were taken one right after the other, so that what slows the machine down for a while slows both.
fn ratios(better: Better, ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| better.ratio(*ours, *theirs)).collect()
}

/// The median.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that `part` (0 to 1) of the values lie below: one of them, or between two.
pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

/// A figure with as many digits as mean something, in groups of three.
fn number(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let first = digits.len() % 3;
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && position % 3 == first {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0.04, "0.0"), (99.94, "99.9"), (100.4, "100"), (1234.5, "1,234"), (1e6, "1,000,000")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.25), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.75), 1.75);
        assert_eq!(quantile(&[1.0], 0.75), 1.0);
        assert_eq!(ratios(Better::Higher, &[3.0, 30.0], &[2.0, 20.0]), [1.5, 1.5]);
        assert_eq!(ratios(Better::Lower, &[2.0], &[3.0]), [1.5]);
    }
}
