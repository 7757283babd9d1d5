//! Kernels: bzImages with payloads of every compression, and ELF files.

#![no_main]

use std::io::Write;
use std::sync::{LazyLock, Mutex};

use arbitrary::Arbitrary;
use innkeeper_images::kernel::{self, Error, MAX_VMLINUX, Packed};
use innkeeper_images_fuzz::disks::vmlinux;
use innkeeper_images_fuzz::sums::crc32;
use innkeeper_images_fuzz::{Bytes, Change, Ground, Image, Steps, bzimage, check_message, gzip, memory};
use libfuzzer_sys::fuzz_target;

/// Kernels that say they are larger are not decompressed here.
const MOST: usize = 2 << 20;

/// What decompressing takes beside the kernel and a dictionary, in bytes.
const LITTLE: usize = 512 << 10;

/// Where the payload begins, with one sector of setup code.
const PAYLOAD: usize = 1024;

#[derive(Arbitrary, Debug)]
enum Input {
    /// A kernel of one of the kinds, with changes.
    Changed { kind: u8, has_memory: bool, is_bare: Option<bool>, changes: Steps<Change> },
    /// A payload that begins as one of the kinds does, and says its size.
    Payload { kind: u8, has_memory: bool, size: u16, rest: Bytes },
    /// Any file.
    Whole(Bytes),
}

const MAGICS: [&[u8]; 6] = [
    &[0x1f, 0x8b, 8],
    &[0x02, 0x21, 0x4c, 0x18],
    b"\xfd7zXZ\0\0\x01ab",
    &[0x28, 0xb5, 0x2f, 0xfd],
    b"\x7fELF",
    b"",
];

static KERNELS: LazyLock<Vec<Mutex<(Image, Ground)>>> = LazyLock::new(|| {
    let elf = vmlinux();
    let sized = |stream: Vec<u8>| [stream, (elf.len() as u32).to_le_bytes().to_vec()].concat();
    let lz4 = |data: &[u8]| {
        let block = lz4_flex::block::compress(data);
        [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
    };
    // With its name in the header, as `gzip` does it.
    let mut named =
        flate2::GzBuilder::new().filename("vmlinux").comment("x").write(Vec::new(), Default::default());
    named.write_all(&elf).unwrap();
    let payloads = [
        gzip(&elf),
        named.finish().unwrap(),
        sized(lz4(&elf)),
        sized(zstd::encode_all(&*elf, 1).unwrap()),
        sized(zstd::encode_all(&*elf, 3).unwrap()),
        include_bytes!("../../tests/kernel-payload.xz").to_vec(),
        elf.clone(),
    ];
    let kernels = payloads.map(|payload| {
        let image = bzimage(&payload);
        kernel::extract_vmlinux(&image).unwrap();
        let end = image.len();
        let structures = vec![
            PAYLOAD..end.min(PAYLOAD + 64),
            end - 12..end,
            PAYLOAD..end,
            0x1f1..0x1f2,
            0x202..0x208,
            0x248..0x250,
        ];
        Mutex::new((Image::new(image), Ground { structures, start: 0, unit: 512 }))
    });
    kernels.into()
});

/// Makes the checksum of an xz block's header right.
fn seal(image: &mut Image) {
    let Some(stream) = image.bytes().get(PAYLOAD..).filter(|stream| stream.starts_with(b"\xfd7zXZ\0")) else {
        return;
    };
    let Some(block) = stream.get(12..).filter(|block| !block.is_empty()) else { return };
    let length = usize::from(block[0]) * 4;
    if let Some(header) = block.get(..length) {
        let sum = crc32(header);
        image.write(PAYLOAD + 12 + length, &sum.to_le_bytes());
    }
}

fn check(image: &[u8], memory: usize) {
    let packed = match Packed::in_image(image) {
        Ok(packed) => packed,
        Err(error) => return check_message(&error),
    };
    assert!(packed.size() <= MAX_VMLINUX);
    if packed.size() > MOST {
        return;
    }
    let mut output = vec![0; packed.size()];
    let result = memory::at_most(memory + LITTLE, || packed.unpack(&mut output, memory));
    match &result {
        Ok(()) => assert!(kernel::is_elf_kernel(&output)),
        Err(error) => check_message(error),
    }
    if let Err(Error::WrongSize { declared, actual }) = result {
        assert!(declared == packed.size() && actual != declared && actual <= declared + 1);
    }
    // With all the memory that there is, it is the same or better.
    match (result, kernel::extract_vmlinux(image)) {
        (Ok(()), Ok(again)) => assert!(again == output),
        (Ok(()), Err(error)) => panic!("only the first time: {error}"),
        (Err(Error::Memory { needed, limit }), _) => assert!(needed > limit && limit == memory),
        (Err(_), again) => assert!(again.is_err()),
    }
}

fuzz_target!(|input: Input| {
    let memory = |has_memory| if has_memory { 4 << 20 } else { 16 << 10 };
    match input {
        Input::Changed { kind, has_memory, is_bare, changes } => {
            let (image, ground) = &mut *KERNELS[usize::from(kind) % KERNELS.len()].lock().unwrap();
            changes.iter().for_each(|change| change.apply(image, ground));
            if is_bare != Some(true) {
                seal(image);
            }
            check(image.bytes(), memory(has_memory));
            image.restore();
        }
        Input::Payload { kind, has_memory, size, rest } => {
            let payload = [MAGICS[usize::from(kind) % MAGICS.len()], &rest].concat();
            let mut image = Image::new(bzimage(&[payload, u32::from(size).to_le_bytes().to_vec()].concat()));
            seal(&mut image);
            check(image.bytes(), memory(has_memory));
        }
        Input::Whole(bytes) => check(&bytes, memory(true)),
    }
});
