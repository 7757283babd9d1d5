//! Broken configurations, symbolic links, sizes and kernels.

use std::fs;

use crate::base::{Base, CONFIGURATION, CONFIGURATION_SIZE, INITRD, KERNEL, Random, VERSION, tree};
use crate::common::{bzimage, grub_cfg, gzip, vmlinux};
use crate::measure::Tally;
use crate::tables::crc32;

pub fn break_configurations(tally: &mut Tally, base: &Base, random: &mut Random) {
    let cfg = grub_cfg("0", "/boot", &[VERSION]);
    let braces: Vec<usize> = cfg.match_indices(['}', '\'']).map(|(at, _)| at).collect();
    let mut broken: Vec<(String, String)> = vec![
        ("another kernel".into(), cfg.replace("vmlinuz", "vmlinux")),
        ("another initrd".into(), cfg.replace("initrd.img", "initrd")),
        ("no linux".into(), cfg.replace("\tlinux", "\tmultiboot")),
        ("a directory for a kernel".into(), cfg.replace(KERNEL, "/boot")),
        ("an endless path".into(), cfg.replace(KERNEL, &"/boot/..".repeat(500))),
        ("a long path".into(), cfg.replace(KERNEL, &format!("/boot/{}", "x".repeat(60_000)))),
        ("long arguments".into(), cfg.replace("quiet", &"quiet ".repeat(400))),
        ("a control character".into(), cfg.replace("quiet", "'qui\u{7}et'")),
        ("a line break in an argument".into(), cfg.replace("quiet", "'qui\net'")),
        ("deep conditions".into(), "if true; then ".repeat(5000)),
        ("deep blocks".into(), "menuentry x { ".repeat(5000)),
        ("deep menus".into(), format!("{}{}", "submenu x { ".repeat(20), "}".repeat(20))),
        ("deep functions".into(), "function x { ".repeat(5000)),
        ("deep loops".into(), "for x in y; do ".repeat(5000)),
        ("exclamation marks".into(), format!("if [ {} ]; then linux", "! ".repeat(60_000))),
        ("one giant word".into(), "x'".repeat(CONFIGURATION_SIZE / 2 - 1)),
        ("one giant line".into(), format!("{} {{", "x ".repeat(60_000))),
        ("giant variables".into(), format!("set a=aaaa\n{}", "set a=$a$a$a$a\n".repeat(5000))),
        ("many variables".into(), (0..8000).map(|n| format!("set v{n}=1\n")).collect()),
        (
            "giant commands".into(),
            format!("set a={}\n{}", "a".repeat(4000), format!("x{}\n", " $a".repeat(500)).repeat(20)),
        ),
        ("many entries".into(), "menuentry x { }\n".repeat(8000)),
        ("firmware".into(), "menuentry 'Firmware' { fwsetup; }".into()),
        ("an open quote".into(), "set x=\"".into()),
        ("an open brace".into(), "set x=${a".into()),
        ("another order".into(), "fi\nif\n".into()),
    ];
    for _ in 0..25 {
        // Without one of its braces or quotes it is no script, or not this one.
        let at = braces[random.below(braces.len())];
        let mut text = cfg.clone();
        text.remove(at);
        broken.push((format!("without the {at}th character"), text));
    }
    for (name, text) in broken {
        let disk = base.with_contents(CONFIGURATION, text.as_bytes(), b'\n');
        tally.check(&format!("grub.cfg: {name}"), &disk, Some(&base.answer));
    }
    // Noise: there may be no entry left, and then it is the highest version.
    let noise: Vec<u8> = (0..CONFIGURATION_SIZE).map(|_| b"{}'\"$\\;\n if fi"[random.below(14)]).collect();
    tally.check("grub.cfg of noise", &base.with_contents(CONFIGURATION, &noise, b'\n'), None);
}

pub fn break_links(tally: &mut Tally) {
    let whole = || tree(&bzimage(&gzip(&vmlinux("x"))));
    let with = |path: &str, target: &str| {
        let tree = whole();
        let _ = fs::remove_file(tree.path().join(&path[1..]));
        tree.with_link(&path[1..], target)
    };
    let chain = (0..40)
        .fold(with(KERNEL, "c0"), |tree, n| tree.with_link(&format!("boot/c{n}"), &format!("c{}", n + 1)));
    let chain = chain.with("boot/c40", bzimage(&gzip(&vmlinux("x"))));
    let circle = with(CONFIGURATION, "a").with_link("boot/grub/a", "b").with_link("boot/grub/b", "a");
    let broken = [
        ("a link to itself", with(CONFIGURATION, "grub.cfg")),
        ("a circle", circle),
        ("a chain", chain),
        ("a link to nowhere", with(KERNEL, "nowhere")),
        ("a link that grows", with(KERNEL, "../boot/l/x").with_link("boot/l", "../boot/l/l")),
        ("a long way", with(INITRD, &"../boot/".repeat(100))),
    ];
    for (name, tree) in broken {
        tally.check(name, &tree.ext4(8), None);
    }
    // As much as a script can make a run do: with long words, with many short ones, and with names to look for.
    let names: String = (0..1000).map(|n| format!("{n}=\n")).collect();
    let names = format!("# GRUB Environment Block\n{}", names.get(..4000).unwrap_or(&names));
    for (name, value, command) in [
        ("long words", "a".repeat(4090), "x"),
        ("words of one letter", format!("\"{}\"", "x ".repeat(2040)), "x"),
        ("names to load", format!("\"{}\"", "x ".repeat(2040)), "load_env"),
    ] {
        let lines = format!("{command}{}\n", " $a".repeat(15)).repeat(6200);
        let work = format!("set a={value}\n{lines}menuentry x {{ }}");
        let tree = whole().with(&CONFIGURATION[1..], work).with("boot/grub/grubenv", &names);
        tally.check(&format!("a script with much to do: {name}"), &tree.ext4(8), None);
    }
    for size in [2 << 20, 3 << 30_u64] {
        let tree = whole();
        fs::File::create(tree.path().join(&CONFIGURATION[1..])).unwrap().set_len(size).unwrap();
        tally.check(&format!("a grub.cfg of {size} bytes"), &tree.ext4(8), None);
    }
    for path in [KERNEL, INITRD] {
        for size in [0, 600 << 20, 200 << 30_u64] {
            let tree = whole();
            fs::File::create(tree.path().join(&path[1..])).unwrap().set_len(size).unwrap();
            tally.check(&format!("{path} of {size} bytes"), &tree.ext4(8), None);
        }
    }
    let many = (0..5000).fold(whole(), |tree, n| tree.with(&format!("boot/loader/entries/{n}.conf"), ""));
    tally.check("thousands of entries", &many.mke2fs(12, &["-t", "ext4", "-N", "6000"]), None);
    let many =
        (0..300).fold(whole(), |tree, n| tree.with(&format!("boot/loader/entries/{n}.conf"), "linux /k"));
    tally.check("hundreds of entries", &many.ext4(12), None);
}

pub fn break_kernels(tally: &mut Tally, base: &Base, random: &mut Random) {
    let elf = vmlinux("x");
    let good = bzimage(&gzip(&elf));
    let sized =
        |stream: Vec<u8>, size: usize| bzimage(&[stream, (size as u32).to_le_bytes().to_vec()].concat());
    let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
    let lz4 = |data: &[u8]| {
        let block = lz4_flex::block::compress(data);
        [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat()
    };
    let bomb = vec![0; 24 << 20];
    let mut gzip_bomb = gzip(&bomb);
    let end = gzip_bomb.len() - 4;
    gzip_bomb[end..].copy_from_slice(&200_000_u32.to_le_bytes());
    let mut other = elf.clone();
    other[18] = 183;
    let mut broken = vec![
        ("no kernel".to_owned(), b"#!/bin/sh\n".repeat(100)),
        ("zeros".into(), vec![0; 4096]),
        ("another machine's".into(), other.clone()),
        ("another machine's inside".into(), bzimage(&gzip(&other))),
        ("text inside".into(), bzimage(&gzip(&b"text ".repeat(1000)))),
        ("a gzip bomb".into(), bzimage(&gzip_bomb)),
        ("a zstd bomb".into(), sized(zstd(&bomb), 200_000)),
        ("an lz4 bomb".into(), sized(lz4(&bomb), 200_000)),
        ("a zstd kernel that is too large".into(), sized(zstd(&elf), 600 << 20)),
        ("a zstd kernel that is smaller than it says".into(), sized(zstd(&elf), 500 << 20)),
        ("an lz4 kernel that is smaller than it says".into(), sized(lz4(&elf), 500 << 20)),
        ("a gzip kernel of no bytes".into(), bzimage(&gzip(b""))),
        ("lz4 without end".into(), sized([&[0x02, 0x21, 0x4c, 0x18][..], &[0xff; 8]].concat(), 1000)),
        (
            "zstd with a window of gigabytes".into(),
            sized([&zstd(&elf)[..4], &[0, 0xff, 0, 0, 0, 0]].concat(), 400 << 20),
        ),
        ("xz with a dictionary of gigabytes".into(), sized(xz_header(40), 100_000)),
        ("xz with a small dictionary and nothing more".into(), sized(xz_header(0), 100_000)),
        ("xz with another filter".into(), sized(xz_header(41), 100_000)),
    ];
    // Offsets that lead outside, in every field of the header that is read.
    for (field, bytes) in [
        (0x1f1, &[0xff][..]),
        (0x202, b"XXXX"),
        (0x248, &[0xff; 4]),
        (0x248, &[1, 0, 0, 0]),
        (0x24c, &[0xff; 4]),
        (0x24c, &[0; 4]),
        (0x24c, &[8, 0, 0, 0]),
    ] {
        let mut kernel = good.clone();
        kernel[field..][..bytes.len()].copy_from_slice(bytes);
        broken.push((format!("header field {field:#x} is {bytes:?}"), kernel));
    }
    for _ in 0..15 {
        // Behind gzip's header, whose time and system nobody minds.
        let (at, bit) = (1034 + random.below(good.len() - 1034), random.below(8));
        let mut kernel = good.clone();
        kernel[at] ^= 1 << bit;
        broken.push((format!("bit {bit} of byte {at}"), kernel));
    }
    for cut in [1, 100, 0x1f1, 0x250, 1023, 1024, 1030, good.len() / 2, good.len() - 1] {
        broken.push((format!("cut off at {cut}"), good[..cut].to_vec()));
    }
    for (name, kernel) in broken {
        // With zeros behind, like a file in whole blocks: nothing in the header says how long the file is.
        let disk = base.with_contents(KERNEL, &kernel, 0);
        tally.check(&format!("kernel: {name}"), &disk, Some(&base.answer));
    }
    // What takes too much memory to decompress may do that itself, where it hurts nobody else.
    let kernel = sized(xz_header(40), 500 << 20);
    let disk = base.with_contents(KERNEL, &kernel, 0);
    let mut answer = base.answer.clone();
    answer.0 = kernel;
    answer.0.resize(base.size(KERNEL), 0);
    assert!(tally.check("a kernel with a dictionary of gigabytes", &disk, Some(&answer)).is_none());
}

/// An xz stream whose block has this size of dictionary, and no end.
fn xz_header(dictionary: u8) -> Vec<u8> {
    let mut block = vec![2, 0, 0x21, 1, dictionary, 0, 0, 0];
    block.extend(crc32(&block).to_le_bytes());
    let mut flags = vec![0, 1];
    flags.extend(crc32(&flags).to_le_bytes());
    [b"\xfd7zXZ\0".to_vec(), flags, block].concat()
}
