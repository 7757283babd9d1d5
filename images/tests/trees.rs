//! The two readers of files, ours of ext4 and Linux's of a directory, tell the same of the same tree.

mod common;

use std::cell::Cell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::Tree;
use innkeeper_images::boot::ext4::FileSystem;
use innkeeper_images::boot::reader::Mounted;
use innkeeper_images::boot::tree::{self, MAX_NAMES};
use innkeeper_images::boot::{BUDGET, Region};

/// A tree with something of everything.
fn tree() -> Tree {
    let tree = Tree::new()
        .with("boot/file", "contents")
        .with("boot/empty", "")
        .with("etc/passwd", "inside")
        .with_link("link", "boot/file")
        .with_link("boot/absolute", "/boot/file")
        .with_link("boot/up", "../boot/file")
        .with_link("boot/outside", "../../../../../../../../etc/passwd")
        .with_link("boot/absolutely-outside", "/../etc/passwd")
        .with_link("boot/dangling", "nothing")
        .with_link("boot/circle", "circle")
        .with_link("directory", "boot");
    let holes = File::create(tree.path().join("boot/holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    holes.write_all_at(b"middle", 1 << 20).unwrap();
    common::run(common::tool("mkfifo").arg(tree.path().join("boot/pipe")), "");
    tree
}

/// Does something with both readers.
fn with_both(files: &Tree, look: impl Fn(&str, &dyn tree::Tree)) {
    let image = files.mke2fs(24, &["-t", "ext4", "-N", "8192"]);
    let (budget, bytes) = (Cell::new(BUDGET), image.as_slice());
    look("ext4", &FileSystem::open(Region::whole(&bytes, &budget).unwrap()).unwrap());
    look("mounted", &Mounted::at(files.path()).unwrap());
}

#[test]
fn files_and_links() {
    with_both(&tree(), |who, tree| {
        for (path, expected) in [
            ("/boot/file", Ok("contents")),
            ("boot/file", Ok("contents")),
            ("//boot/./file", Ok("contents")),
            ("boot/empty", Ok("")),
            ("link", Ok("contents")),
            ("boot/absolute", Ok("contents")),
            ("boot/up", Ok("contents")),
            ("directory/file", Ok("contents")),
            ("directory/up", Ok("contents")),
            // There is nothing outside.
            ("boot/outside", Ok("inside")),
            ("boot/absolutely-outside", Ok("inside")),
            ("../etc/passwd", Ok("inside")),
            ("/etc/hostname", Err("it does not exist")),
            ("boot/dangling", Err("it does not exist")),
            ("boot/fil", Err("it does not exist")),
            ("boot/fi\0le", Err("it does not exist")),
            (&*"x".repeat(300), Err("it does not exist")),
            (&*"x/".repeat(100), Err("it does not exist")),
            ("boot/circle", Err("it leads through too many symbolic links, or in a circle")),
            ("boot/file/x", Err("it is no directory")),
            ("boot", Err("it is no regular file")),
            ("", Err("it is no regular file")),
            ("boot/pipe", Err("it is no regular file")),
            ("boot/holes", Err("it is 3145728 bytes large, more than the 100 that are accepted")),
        ] {
            let found = tree.read(path, 100).map_err(|error| error.to_string());
            let expected = expected.map(|text| text.as_bytes().to_vec()).map_err(str::to_owned);
            assert_eq!(found, expected, "{who} {path}");
        }
        let holes = tree.read("boot/holes", 3 << 20).unwrap();
        assert_eq!((holes.len(), &holes[1 << 20..][..6]), (3 << 20, &b"middle"[..]), "{who}");
        assert_eq!(holes.iter().filter(|byte| **byte != 0).count(), 6, "{who}");
        let refused = tree.copy("link", 100, &mut |_, _| Err(std::io::Error::other("full")));
        assert!(matches!(refused, Err(tree::Error::Store(_))), "{who}");
    });
}

#[test]
fn directories() {
    with_both(&tree(), |who, tree| {
        for (path, expected) in [
            ("/", Ok("boot directory etc link lost+found")),
            ("", Ok("boot directory etc link lost+found")),
            ("/etc", Ok("passwd")),
            ("boot/none", Err("it does not exist")),
            ("boot/file", Err("it is no directory")),
            ("link", Err("it is no directory")),
        ] {
            let names = tree.names(path).map_err(|error| error.to_string()).map(|mut names| {
                if who == "mounted" && path.len() < 2 {
                    names.push("lost+found".into());
                }
                names.sort();
                names.join(" ")
            });
            assert_eq!(names, expected.map(str::to_owned).map_err(str::to_owned), "{who} {path}");
        }
        for (path, expected) in [
            ("/boot", Ok(true)),
            ("boot/pipe", Ok(true)),
            ("boot/up", Ok(true)),
            ("boot/none", Ok(false)),
            ("boot/dangling", Ok(false)),
            ("boot/file/x", Ok(false)),
            ("boot/circle", Err("it leads through too many symbolic links, or in a circle")),
        ] {
            let found = tree.exists(path).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{who} {path}");
        }
    });
}

#[test]
fn a_directory_with_too_many_names() {
    let files = Tree::new();
    fs::create_dir(files.path().join("many")).unwrap();
    for number in 0..MAX_NAMES {
        File::create(files.path().join(format!("many/{number}"))).unwrap();
    }
    with_both(&files, |who, tree| {
        assert!(matches!(tree.names("many"), Err(tree::Error::Names)), "{who}");
    });
}
