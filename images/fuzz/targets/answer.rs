//! Answers of the guest that reads disks, which a file system may have taken over.

#![no_main]

use arbitrary::Arbitrary;
use innkeeper_images::boot::command_line::MAX_LENGTH;
use innkeeper_images::boot::reader;
use innkeeper_images_fuzz::{Bytes, Change, Ground, Image, Meter, Steps, check_message, memory};
use libfuzzer_sys::fuzz_target;

/// Where the text is, and the kernel, in bytes.
const TEXT: usize = 512;
const KERNEL: usize = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    state: u8,
    /// Strings of the text, in their order, and how many of them are initial RAM file systems.
    strings: [Bytes; 6],
    initrds: u8,
    kernel: u16,
    is_elf: bool,
    changes: Steps<Change>,
}

fn disk(input: &Input) -> Image {
    let mut text = 1_u32.to_le_bytes().to_vec();
    let mut put = |string: &[u8]| {
        text.extend((string.len() as u32).to_le_bytes());
        text.extend(string);
    };
    let [head @ .., initrd, _] = &input.strings;
    head.iter().for_each(|string| put(string));
    let initrds = u32::from(input.initrds % 4);
    text.extend(initrds.to_le_bytes());
    let mut put = |string: &[u8]| {
        text.extend((string.len() as u32).to_le_bytes());
        text.extend(string);
    };
    (0..initrds).for_each(|_| put(initrd));
    let mut bytes = b"INKPBOOT".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(u32::from(input.state % 5).to_le_bytes());
    for length in [text.len() as u64, input.kernel.into(), 0] {
        bytes.extend(length.to_le_bytes());
    }
    bytes.resize(TEXT, 0);
    bytes.extend(&text);
    bytes.resize(KERNEL, 0);
    if input.is_elf {
        bytes.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    }
    bytes.resize(KERNEL + (1 << 16), 0);
    Image::new(bytes)
}

fuzz_target!(|input: Input| {
    let mut image = disk(&input);
    let ground =
        Ground { structures: vec![0..48, TEXT..TEXT + 512, KERNEL..KERNEL + 1024], start: 0, unit: 512 };
    input.changes.iter().for_each(|change| change.apply(&mut image, &ground));
    let meter = Meter::new(image.bytes());
    match memory::at_most(memory::MOST, || reader::answer(&meter)) {
        Ok(source) => assert!(source.command_line.len() <= MAX_LENGTH),
        Err(error) => check_message(&error),
    }
});
