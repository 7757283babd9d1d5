//! The kernel's command line: the disk's own, and what a micro-VM needs.

/// The most that Linux takes on x86, without the zero at the end, in bytes.
pub const MAX_LENGTH: usize = 2047;

/// What saves a guest the time of looking for hardware that its machine does not have. Whatever the disk says about
/// one of them itself stays.
const MACHINE: [&str; 6] = [
    "8250.nr_uarts=1",
    "tsc=reliable",
    "random.trust_cpu=on",
    "cryptomgr.notests",
    "i8042.noaux",
    "i8042.nokbd",
];

const CONSOLE: &str = "console=ttyS0";

/// Why a command line cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than Linux takes.
    #[error("the kernel's arguments are {0} bytes long with those of the machine, and may be {MAX_LENGTH}")]
    TooLong(usize),
    /// Such as a line break.
    #[error("the kernel's arguments have a control character in them")]
    Control,
}

/// Adds to the kernel's arguments what is not there already: a serial console, which becomes `/dev/console` by being
/// the last, and what spares a guest looking for hardware. A tab becomes a space. Nothing else changes.
///
/// # Errors
/// The result is longer than [`MAX_LENGTH`], or has control characters.
pub fn complete(arguments: &str) -> Result<String, Error> {
    // Linux takes a tab too, and a VMM may not.
    let arguments = arguments.replace('\t', " ");
    let arguments = arguments.trim();
    if arguments.chars().any(char::is_control) {
        return Err(Error::Control);
    }
    let all = words(arguments);
    // What comes behind two dashes is for init.
    let end = all.iter().find(|(_, word)| *word == "--").map_or(arguments.len(), |(start, _)| *start);
    let own = || all.iter().take_while(|(start, _)| *start < end).map(|(_, word)| *word);
    let has = |name: &str| own().any(|word| is_same(word.split('=').next().unwrap_or(word), name));
    let has_console = own().any(|word| {
        word.strip_prefix(CONSOLE).is_some_and(|options| options.is_empty() || options.starts_with(','))
    });
    let (kernel, init) = arguments.split_at(end);
    let mut parts: Vec<&str> = vec![kernel.trim_end()];
    if !has_console {
        parts.push(CONSOLE);
    }
    parts.extend(MACHINE.into_iter().filter(|argument| !has(argument.split('=').next().unwrap_or(argument))));
    parts.push(init);
    parts.retain(|part| !part.is_empty());
    let line = parts.join(" ");
    if line.len() > MAX_LENGTH { Err(Error::TooLong(line.len())) } else { Ok(line) }
}

/// The words of a command line and where they begin. A space inside of quotes parts nothing (`next_arg` in Linux).
fn words(line: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut begin = None;
    let mut is_quoted = false;
    for (at, character) in line.char_indices().chain([(line.len(), ' ')]) {
        match character {
            ' ' if !is_quoted || at == line.len() => {
                let word = begin.take().and_then(|begin| Some((begin, line.get(begin..at)?)));
                words.extend(word);
            }
            _ => {
                begin.get_or_insert(at);
                is_quoted ^= character == '"';
            }
        }
    }
    words
}

/// Whether two parameters are the same one. A dash is an underscore there.
fn is_same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes().zip(b.bytes()).all(|(a, b)| a == b || b"-_".contains(&a) && b"-_".contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &str =
        "8250.nr_uarts=1 tsc=reliable random.trust_cpu=on cryptomgr.notests i8042.noaux i8042.nokbd";

    #[test]
    fn what_a_machine_needs_is_added_once() {
        for (arguments, expected) in [
            ("", format!("console=ttyS0 {ALL}")),
            ("root=UUID=1-2 ro quiet", format!("root=UUID=1-2 ro quiet console=ttyS0 {ALL}")),
            ("console=ttyS0,115200n8 ro", format!("console=ttyS0,115200n8 ro {ALL}")),
            ("console=ttyS0 console=tty0", format!("console=ttyS0 console=tty0 {ALL}")),
            ("console=ttyS01 console=tty1", format!("console=ttyS01 console=tty1 console=ttyS0 {ALL}")),
            ("ro -- console=ttyS0  x", format!("ro console=ttyS0 {ALL} -- console=ttyS0  x")),
            ("\tro\tquiet\t-- x", format!("ro quiet console=ttyS0 {ALL} -- x")),
            ("a=\"b\tc\"\tconsole=ttyS0\t", format!("a=\"b c\" console=ttyS0 {ALL}")),
            ("dyndbg=\"file a -- +p\"", format!("dyndbg=\"file a -- +p\" console=ttyS0 {ALL}")),
            (
                "tsc=unstable random.trust-cpu=off 8250.nr_uarts=4",
                "tsc=unstable random.trust-cpu=off 8250.nr_uarts=4 console=ttyS0 cryptomgr.notests i8042.noaux i8042.nokbd"
                    .into(),
            ),
        ] {
            let line = complete(arguments).unwrap();
            assert_eq!(line, expected);
            assert_eq!(complete(&line).unwrap(), line, "a second time");
        }
    }

    #[test]
    fn what_linux_does_not_take_is_refused() {
        let own = ALL.len() + CONSOLE.len() + 2;
        assert_eq!(complete(&"x".repeat(MAX_LENGTH - own)).unwrap().len(), MAX_LENGTH);
        assert_eq!(complete(&"x".repeat(MAX_LENGTH - own + 1)), Err(Error::TooLong(MAX_LENGTH + 1)));
        assert_eq!(complete("a\nb"), Err(Error::Control));
    }

    proptest! {
        #[test]
        fn the_disks_own_stay(line in "[a-z=\" \t-]{0,40}") {
            let result = complete(&line).unwrap();
            let line = line.replace('\t', " ");
            let mut expected = words(line.trim());
            for (_, word) in words(&result) {
                if expected.first().is_some_and(|(_, own)| *own == word) {
                    expected.remove(0);
                }
            }
            // An open quote takes in what follows.
            prop_assert!(expected.is_empty() || line.matches('"').count() % 2 == 1, "{result}");
        }
    }
}
