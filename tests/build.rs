//! Builds the bare-metal payloads: small guests without a kernel, one C file each.
//!
//! They are C because Rust's host target uses SSE everywhere, which a KVM that emulates kernel-mode code does
//! not know. The compiler is the one that Rust links with.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=payloads");
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    for entry in fs::read_dir("payloads").expect("payloads is a directory of this crate") {
        let path = entry.expect("a readable directory").path();
        if path.extension().is_some_and(|extension| extension == "c") {
            compile(&path, Path::new(&out), &[]);
        }
    }
    // The launch bench waits for the first byte that comes at all; and a kernel may have no PVH entry point.
    for (variant, flag) in [("bench", "-DFIRST_BYTE='!'"), ("linux64", "-DWITHOUT_PVH")] {
        let out = Path::new(&out).join(variant);
        fs::create_dir_all(&out).expect("OUT_DIR is writable");
        compile(Path::new("payloads/hello.c"), &out, &[flag]);
    }
    println!("cargo::rustc-env=PAYLOADS={out}");
}

fn compile(source: &Path, out: &Path, flags: &[&str]) {
    let status = Command::new("cc")
        .args([
            "-O2",
            "-Wall",
            "-Werror",
            "-Wno-main",
            "-std=gnu11",
            "-ffreestanding",
            "-fno-stack-protector",
        ])
        .args([
            "-mgeneral-regs-only",
            "-fno-pic",
            "-mno-red-zone",
            "-fcf-protection=none",
            "-fno-asynchronous-unwind-tables",
        ])
        .args([
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=none,-z,norelro,-z,noexecstack,-Ttext-segment=0x100000",
        ])
        .args(flags)
        .arg("payloads/start.S")
        .arg(source)
        .arg("-o")
        .arg(out.join(source.file_stem().expect("a file has a name")))
        .status();
    assert!(status.is_ok_and(|status| status.success()), "cc could not build {}", source.display());
}
