//! Manifests of imported disks.

#![no_main]

use innkeeper_images::import::{MAX_SIZE, Manifest};
use innkeeper_images_fuzz::{check_message, memory};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    // Most of what there is to find is behind the first lines.
    let whole = format!("innkeeper-disk-manifest 1\n{text}");
    for text in [&*text, &whole] {
        match memory::at_most(memory::MOST, || Manifest::parse(text)) {
            Ok(manifest) => {
                assert!(manifest.size() <= MAX_SIZE && manifest.data() <= manifest.size());
                assert_eq!(manifest.text(), text, "there is one way to write a manifest");
            }
            Err(error) => check_message(&error),
        }
    }
});
