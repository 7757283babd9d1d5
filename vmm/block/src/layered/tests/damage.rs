//! The checker: what it says of each kind of damage, and of what a crash may leave.

use std::sync::Arc;

use uuid::Uuid;

use super::create;
use super::recorder::{Content, Log, Recorder};
use crate::Operation;
use crate::layered::check::inspect;
use crate::layered::format::{Header, Page, Slot, State, States};
use crate::layered::storage::Storage;
use crate::layered::{Layered, Problem, Report};
use crate::segments::tests::Memory;

const SIZE: u64 = 1 << 20;

/// Two layers: a sealed one with data and zeroes, and a top with some of both.
fn layers() -> Vec<[Recorder; 2]> {
    let log = Log::default();
    let file = |number| Recorder::new(number, &log, Content::default());
    let files = vec![[file(0), file(1)], [file(2), file(3)]];
    let boxed = |[data, map]: &[Recorder; 2]| -> (Box<dyn Storage>, Box<dyn Storage>) {
        (Box::new(data.clone()), Box::new(map.clone()))
    };
    (1..).zip(&files).for_each(|(id, [data, map])| create(data, map, id, SIZE));
    let volume = Layered::over(vec![boxed(&files[0])], false).unwrap();
    let write = |offset| {
        let segments = Memory::new(vec![vec![1; 8192]]).segments();
        volume.volume.run(Operation::Write { offset, segments }).unwrap();
        volume.volume.run(Operation::Discard { offset, length: 4096 }).unwrap();
        volume.volume.run(Operation::Flush).unwrap();
    };
    write(0);
    write(16384);
    let (data, map) = boxed(&files[1]);
    volume.seal_over(data, map).unwrap();
    volume.finish_seal().unwrap();
    write(16384);
    write(32768);
    files
}

fn report(layers: &[[Recorder; 2]]) -> Report {
    let files: Vec<_> = layers
        .iter()
        .map(|[data, map]| {
            Some((Box::new(data.clone()) as Box<dyn Storage>, Box::new(map.clone()) as Box<dyn Storage>))
        })
        .collect();
    let mut report = Report::default();
    inspect(&files, &mut report);
    report
}

fn header(map: &Recorder) -> (Header, Slot) {
    crate::layered::map::read_header(map).unwrap()
}

fn spoil(map: &Recorder, offset: u64) {
    map.write_at(b"spoilt", offset).unwrap();
}

fn put(map: &Recorder, slot: Slot, region: u32, generation: u64, blocks: &[u64]) {
    let mut states = States::default();
    blocks.iter().for_each(|block| states.set(*block, State::Data));
    let page = Page { generation, states }.encode(header(map).0.id, region);
    map.write_at(&page, slot.of_page(region)).unwrap();
}

#[test]
fn sound_layers_are_summed_up() {
    let report = report(&layers());
    assert_eq!(report.to_string(), "2 layers are sound\n");
    let summaries: Vec<_> = report.layers.iter().flatten().collect();
    let [bottom, top] = summaries[..] else { panic!("{report:?}") };
    assert_eq!((bottom.id.as_u128(), bottom.parent, bottom.is_sealed), (1, None, true));
    assert_eq!((bottom.size, bottom.data, bottom.zeroes), (SIZE, 2 * 4096, 2 * 4096));
    assert_eq!((top.parent, top.is_sealed), (Some(Uuid::from_u128(1)), false));
    assert_eq!((top.data, top.zeroes), (2 * 4096, 2 * 4096));
}

/// What was done to the two layers, what is found then, and in which of them.
#[test]
fn each_kind_of_damage_is_found_and_explained() {
    type Damage = fn(&mut Vec<[Recorder; 2]>);
    let cases: &[(Damage, usize, &str, bool)] = &[
        (
            |layers| Slot::BOTH.iter().for_each(|slot| spoil(&layers[0][1], slot.of_header())),
            0,
            "nothing of the layer can be read: neither of its headers",
            true,
        ),
        (|layers| layers[1][1] = empty(), 1, "it has no header", true),
        // The header that says that it is sealed: nothing is lost, but it is not marked any more.
        (
            |layers| spoil(&layers[0][1], header(&layers[0][1]).1.of_header()),
            0,
            "one of the map's two headers cannot be used",
            false,
        ),
        (
            |layers| spoil(&layers[0][1], header(&layers[0][1]).1.of_header()),
            0,
            "not sealed: a crash came before",
            false,
        ),
        (
            |layers| drop(layers.remove(0)),
            0,
            "it belongs on top of layer 00000000-0000-0000-0000-000000000001, and is on top of nothing",
            true,
        ),
        (|layers| layers.swap(0, 1), 1, "it belongs on top of nothing, and is on top of layer", true),
        (
            |layers| {
                let (header, slot) = header(&layers[0][1]);
                let header = Header { size: SIZE * 2, ..header };
                layers[0][1].write_at(&header.encode(), slot.of_header()).unwrap();
                layers[0][0].grow(SIZE * 2).unwrap();
            },
            1,
            "it has 1048576 bytes, and the layer below it 2097152",
            true,
        ),
        // Of the top, only one slot is spoilt, and then the other.
        (
            |layers| spoil(&layers[1][1], Slot::First.of_page(0)),
            1,
            "a crash came while the page of region 0",
            false,
        ),
        (
            |layers| spoil(&layers[1][1], Slot::Second.of_page(0)),
            1,
            "a crash came while the page of region 0",
            false,
        ),
        (
            |layers| Slot::BOTH.iter().for_each(|slot| spoil(&layers[1][1], slot.of_page(0))),
            1,
            "region 0 are, and reading them is an error: its checksum does not match",
            true,
        ),
        // Of a sealed layer, one is enough.
        (|layers| spoil(&layers[0][1], Slot::First.of_page(0)), 0, "its checksum does not match", true),
        (
            |layers| put(&layers[0][1], Slot::First, 0, 99, &[]),
            0,
            "it is of generation 99, and the layer was sealed at",
            true,
        ),
        (
            |layers| {
                let mut bytes = [0; 4096];
                let _ = layers[0][1].read_at(&mut bytes, Slot::First.of_page(0)).unwrap();
                layers[1][1].write_at(&bytes, Slot::First.of_page(0)).unwrap();
            },
            1,
            "it belongs to another layer, 00000000-0000-0000-0000-000000000001",
            true,
        ),
        (
            |layers| put(&layers[1][1], Slot::First, 0, 99, &[256]),
            1,
            "block 256, which is behind the volume's end",
            true,
        ),
        (
            |layers| layers[0][0] = empty(),
            0,
            "the data file has 0 bytes, and there should be data up to 24576",
            true,
        ),
    ];
    for (damage, layer, text, is_damage) in cases {
        let mut layers = layers();
        damage(&mut layers);
        let report = report(&layers);
        let is_it =
            |problem: &Problem| problem.to_string().contains(text) && problem.is_damage() == *is_damage;
        let is_found =
            report.findings.iter().any(|finding| finding.layer == *layer && is_it(&finding.problem));
        assert!(is_found, "{text}: {report}");
        assert_eq!(report.is_sound(), !is_damage, "{report}");
    }
}

fn empty() -> Recorder {
    Recorder::new(9, &Arc::default(), Content::default())
}

#[test]
fn files_that_cannot_be_opened_are_a_finding() {
    let directory = tempfile::tempdir().unwrap();
    let layer = super::make(directory.path(), 1, SIZE);
    let other = super::make(directory.path(), 2, SIZE);
    other.map.set_len(0).unwrap();
    let report = crate::layered::check(vec![layer, other]);
    assert_eq!(report.layers.len(), 2);
    let text = report.to_string();
    assert!(
        text.starts_with("damage: layer 1: the map file cannot be read: it holds less than one sector"),
        "{text}"
    );
    assert!(text.contains("note: layer 0: it is below another one, and not sealed"), "{text}");
}
