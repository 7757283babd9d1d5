//! What a guest reads with CPUID: the host's features as far as KVM can give them, and our own topology.

use std::collections::BTreeSet;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_sys_util::fam;

mod leaf {
    pub const VENDOR: u32 = 0;
    pub const FEATURES: u32 = 1;
    pub const CACHES: u32 = 4;
    pub const PERFORMANCE_MONITORING: u32 = 0xa;
    pub const TOPOLOGY: u32 = 0xb;
    pub const TOPOLOGY_V2: u32 = 0x1f;
    pub const AMD_SIZES: u32 = 0x8000_0008;
    pub const AMD_CACHES: u32 = 0x8000_001d;
    pub const AMD_TOPOLOGY: u32 = 0x8000_001e;
    pub const AMD_NESTED_VIRTUALISATION: u32 = 0x8000_000a;
    pub const AMD_PERFORMANCE_MONITORING: u32 = 0x8000_0022;
    pub const AMD_FEATURES: u32 = 0x8000_0001;
    pub const KVM_FEATURES: u32 = 0x4000_0001;
}

/// Bits of leaf 1, ECX and EDX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const MULTIPLE_CPUS: u32 = 1 << 28;
/// Bit of leaf 0x8000_0001, ECX: this package has several cores.
const AMD_COMPATIBILITY_LEGACY: u32 = 1 << 1;
/// Bit of leaf 0x8000_0001, ECX: virtualisation.
const SVM: u32 = 1 << 2;
/// Bits of leaf 0x8000_0001, ECX: the performance counter extensions.
const AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// Bit of the KVM features' EDX hints that we never promise: that a CPU is never preempted.
const KVM_HINT_REALTIME: u32 = 1;

/// Leaves that a guest does not get.
const HIDDEN: [u32; 3] =
    [leaf::PERFORMANCE_MONITORING, leaf::AMD_NESTED_VIRTUALISATION, leaf::AMD_PERFORMANCE_MONITORING];

/// The features every CPU of the guest shares, from `supported` (`KVM_GET_SUPPORTED_CPUID`).
///
/// Performance counters are left out: they tell one tenant about another. So is nested virtualisation, which
/// would show a guest the most intricate part of KVM. With `tsc_deadline` the local
/// APIC's timer is programmed by time stamp, which spares the guest from calibrating it.
pub fn template(supported: &CpuId, tsc_deadline: bool) -> Result<CpuId, fam::Error> {
    let entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !HIDDEN.contains(&entry.function))
        .map(|entry| {
            let mut entry = *entry;
            match entry.function {
                leaf::FEATURES => {
                    entry.ecx = entry.ecx & !VMX | HYPERVISOR;
                    if tsc_deadline {
                        entry.ecx |= TSC_DEADLINE;
                    }
                }
                leaf::AMD_FEATURES => entry.ecx &= !(AMD_COUNTERS | SVM),
                leaf::KVM_FEATURES => entry.edx &= !KVM_HINT_REALTIME,
                _ => {}
            }
            entry
        })
        .collect();
    CpuId::from_entries(&entries)
}

/// The features of CPU `index` of `count`: `template` with one package of `count` cores, one thread each.
///
/// The APIC id is the index, so a core's number is all of the id's bits.
pub fn for_cpu(template: &CpuId, index: u8, count: u8) -> Result<CpuId, fam::Error> {
    let (id, count) = (u32::from(index), u32::from(count));
    let id_bits = count.next_power_of_two().trailing_zeros();
    let is_amd = is_amd(template);
    let topology_leaves: BTreeSet<u32> = template
        .as_slice()
        .iter()
        .map(|entry| entry.function)
        .filter(|function| matches!(*function, leaf::TOPOLOGY | leaf::TOPOLOGY_V2))
        .collect();
    let mut entries: Vec<kvm_cpuid_entry2> = template
        .as_slice()
        .iter()
        .filter(|entry| !topology_leaves.contains(&entry.function))
        .map(|entry| {
            let mut entry = *entry;
            match entry.function {
                leaf::FEATURES => {
                    entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
                    entry.edx = set(entry.edx, MULTIPLE_CPUS, count > 1);
                }
                leaf::CACHES => share_cache(&mut entry, count),
                leaf::AMD_CACHES if is_amd => share_cache(&mut entry, count),
                leaf::AMD_FEATURES if is_amd => {
                    entry.ecx = set(entry.ecx, AMD_COMPATIBILITY_LEGACY, count > 1);
                }
                leaf::AMD_SIZES if is_amd => entry.ecx = (count - 1) | id_bits << 12,
                leaf::AMD_TOPOLOGY if is_amd => {
                    entry.eax = id; // extended APIC id
                    entry.ebx = id; // compute unit: one thread
                    entry.ecx = 0; // one node
                }
                _ => {}
            }
            entry
        })
        .collect();
    for function in topology_leaves {
        entries.extend(topology(function, id, count, id_bits));
    }
    CpuId::from_entries(&entries)
}

/// Leaves 0xb and 0x1f (Intel SDM volume 2A, CPUID): threads of a core, cores of the package, end.
fn topology(function: u32, id: u32, count: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    const END: u32 = 0;
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    [level(0, THREAD, 0, 1), level(1, CORE, id_bits, count), level(2, END, 0, 0)]
}

/// Leaf 4 and its AMD twin: the last-level cache belongs to all cores, the others to one each.
fn share_cache(entry: &mut kvm_cpuid_entry2, count: u32) {
    const LAST_LEVEL: u32 = 3;
    const NO_CACHE: u32 = 0;
    let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
    if kind == NO_CACHE {
        return;
    }
    let sharing = if level >= LAST_LEVEL { count - 1 } else { 0 };
    entry.eax = entry.eax & 0x0000_3fff | sharing << 14;
    if entry.function == leaf::CACHES {
        entry.eax |= (count - 1).min(0x3f) << 26;
    }
}

fn is_amd(cpuid: &CpuId) -> bool {
    let registers = |vendor: &[u8; 12]| {
        [0, 4, 8].map(|at| u32::from_le_bytes([vendor[at], vendor[at + 1], vendor[at + 2], vendor[at + 3]]))
    };
    cpuid.as_slice().iter().any(|entry| {
        entry.function == leaf::VENDOR
            && [b"AuthenticAMD", b"HygonGenuine"]
                .iter()
                .any(|vendor| registers(vendor) == [entry.ebx, entry.edx, entry.ecx])
    })
}

fn set(register: u32, bit: u32, on: bool) -> u32 {
    if on { register | bit } else { register & !bit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn supported(amd: bool) -> CpuId {
        let vendor = if amd { b"AuthenticAMD" } else { b"GenuineIntel" };
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        CpuId::from_entries(&[
            entry(0, 0, 0x1f, word(0), word(8), word(4)),
            entry(1, 0, 0, 0x1234_5678, VMX, 0),
            entry(4, 0, 1 | 1 << 5, 0, 0, 0),
            entry(4, 1, 3 | 3 << 5, 0, 0, 0),
            entry(0xa, 0, 0xffff, 0, 0, 0),
            entry(0x8000_000a, 0, 1, 0, 0, 0),
            entry(0xb, 0, 7, 7, 7, 7),
            entry(0x8000_0001, 0, 0, 0, u32::MAX, 0),
            entry(0x8000_0008, 0, 48, 0, 0, 0),
            entry(0x8000_001e, 0, 0, 0, 0, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
    }

    #[test]
    fn every_cpu_has_its_own_id_and_knows_its_siblings() {
        for (amd, count, bits) in [(true, 1, 0), (true, 4, 2), (false, 5, 3), (false, 32, 5)] {
            let template = template(&supported(amd), true).unwrap();
            for index in 0..count {
                let cpuid = for_cpu(&template, index, count).unwrap();
                let (id, count) = (u32::from(index), u32::from(count));
                let features = find(&cpuid, 1, 0);
                assert_eq!(features.ebx, 0x5678 | count << 16 | id << 24);
                assert_eq!(features.edx & MULTIPLE_CPUS != 0, count > 1);
                assert_eq!(features.ecx, HYPERVISOR | TSC_DEADLINE);
                let core = find(&cpuid, 0xb, 1);
                assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (bits, count, 0x201, id));
                assert_eq!(find(&cpuid, 0xb, 2).ecx, 2);
                assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
                assert_eq!(find(&cpuid, 4, 1).eax >> 14 & 0xfff, count - 1);
                if amd {
                    assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, (count - 1) | bits << 12);
                    assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, id);
                }
            }
        }
    }

    #[test]
    fn performance_counters_and_nested_virtualisation_are_hidden() {
        let template = template(&supported(true), false).unwrap();
        assert!(template.as_slice().iter().all(|entry| !HIDDEN.contains(&entry.function)));
        assert_eq!(find(&template, 0x8000_0001, 0).ecx & (AMD_COUNTERS | SVM), 0);
        assert_eq!(find(&template, 1, 0).ecx & VMX, 0);
        assert_eq!(find(&template, 1, 0).ecx & TSC_DEADLINE, 0);
    }
}
