//! More than 300 images that are broken, each in its own way: partition tables, ext4's structures, its journal,
//! configurations, kernels. Each ends in an error of one line, within 2 s and 64 MiB.
//!
//! The images are the same in every run. Where a random change hits nothing that matters, the answer has to be that of
//! the whole image. Files in memory do not count, since the limits of what goes into them are
//! [`MAX_KERNEL`](innkeeper_images::boot::MAX_KERNEL) and the like; the images of this test do not count either.
//!
//! `SHOW=1 cargo test -p innkeeper-images --test broken -- --nocapture` prints every message.

mod base;
#[path = "../common/mod.rs"]
mod common;
mod contents;
mod ext4;
#[path = "../common/heap.rs"]
mod heap;
mod measure;
mod tables;

use std::time::Instant;

use base::{Base, Random, tree};
use common::{LINUX, bzimage, gpt, gzip, mbr, vmlinux};
use contents::{break_configurations, break_kernels, break_links};
use ext4::{
    break_directories, break_inodes, break_journals, break_superblock, break_trees, flip_bits, repeat_blocks,
};
use measure::Tally;
use tables::{break_gpt, break_mbr};

#[test]
fn broken_images_end_in_errors() {
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut random = Random(0x1ee7_c0de_5eed_0001);
    let kernel = bzimage(&[gzip(&vmlinux("x")), vec![0xa5; 300_000]].concat());
    // The payload ends where gzip does.
    let mut kernel = kernel;
    let length = gzip(&vmlinux("x")).len() as u32;
    kernel[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    let tree = tree(&kernel);
    let checked = tree.ext4(8);
    let unchecked = tree.mke2fs(8, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit,^has_journal"]);
    const START: usize = 1 << 20;
    let gpt = Base::new(gpt(&[(LINUX, &checked)]), START, &checked, 1024);
    let mbr = Base::new(mbr(&[&unchecked], &[]), START, &unchecked, 1024);

    type Break<'a> = (&'a str, Box<dyn FnOnce(&mut Tally, &mut Random) + 'a>);
    let kinds: [Break<'_>; 13] = [
        ("GPT", Box::new(|tally, random| break_gpt(tally, &gpt, random))),
        ("MBR", Box::new(|tally, _| break_mbr(tally, &mbr))),
        ("superblock", Box::new(|tally, random| break_superblock(tally, &mbr, random))),
        ("inodes", Box::new(|tally, _| break_inodes(tally, &mbr))),
        ("extent trees", Box::new(|tally, _| break_trees(tally, &mbr))),
        ("repetitions", Box::new(|tally, _| repeat_blocks(tally, &mbr))),
        ("directories", Box::new(|tally, _| break_directories(tally, &mbr))),
        ("bits", Box::new(|tally, random| flip_bits(tally, &gpt, random))),
        ("configurations", Box::new(|tally, random| break_configurations(tally, &mbr, random))),
        ("links and sizes", Box::new(|tally, _| break_links(tally))),
        ("kernels", Box::new(|tally, random| break_kernels(tally, &mbr, random))),
        ("journals", Box::new(break_journals)),
        (
            "whole",
            Box::new(|tally, _| {
                for base in [&gpt, &mbr] {
                    assert!(tally.check("whole", &base.disk, Some(&base.answer)).is_none());
                }
            }),
        ),
    ];
    for (kind, make) in kinds {
        let before = (tally.errors, tally.unharmed);
        make(&mut tally, &mut random);
        println!("{kind:16} {:4} errors {:4} unharmed", tally.errors - before.0, tally.unharmed - before.1);
    }
    let Tally { errors, unharmed, slowest, largest, wrong } = tally;
    println!(
        "{errors} errors, {unharmed} unharmed; at most {slowest:?} and {} KiB; all {:?}",
        largest >> 10,
        begun.elapsed()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(errors >= 300, "only {errors} of {} are errors", errors + unharmed);
}
