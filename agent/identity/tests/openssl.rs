//! What the authority makes, verified by `openssl`, with the commands of `docs/identity.md`.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use innkeeper_identity::{Authority, Kind};
use jiff::Timestamp;
use tempfile::TempDir;

const PAGE: &str = include_str!("../../../docs/identity.md");

const DOCUMENT: &str = "{\n  \"accountId\" : \"000000000000\",\n  \"region\" : \"us-east-1\"\n}";

static AUTHORITY: LazyLock<Authority> =
    LazyLock::new(|| Authority::generate("us-east-1", Timestamp::now()).unwrap());

/// The commands of a section of the page.
fn commands(section: &str) -> &str {
    let section = PAGE.split(&format!("\n### {section}\n")).nth(1).unwrap();
    section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap()
}

fn run(directory: &Path, commands: &str) -> Output {
    Command::new("sh").args(["-ec", commands]).current_dir(directory).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory with a document, what signs it, and the certificate.
fn signed(kind: Kind, signed: &str, document: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let signature = match kind {
        Kind::Signature => AUTHORITY.signature(signed.as_bytes()),
        Kind::Pkcs7 => AUTHORITY.pkcs7(signed.as_bytes()),
        _ => AUTHORITY.rsa2048(signed.as_bytes()),
    };
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write(kind.name(), &signature.unwrap());
    write("document", document);
    write("certificate", &AUTHORITY.certificate(kind).unwrap());
    directory
}

#[test]
fn each_signature_is_good_for_its_document() {
    for kind in [Kind::Signature, Kind::Pkcs7, Kind::Rsa2048] {
        let directory = signed(kind, DOCUMENT, DOCUMENT);
        let output = run(directory.path(), commands(kind.name()));
        assert!(output.status.success(), "{kind:?}: {}", said(&output));
        let other = signed(kind, DOCUMENT, &DOCUMENT.replace("us-east-1", "us-east-2"));
        let output = run(other.path(), commands(kind.name()));
        assert!(!output.status.success(), "{kind:?}: {}", said(&output));
    }
}

/// As it is in AWS's pages of today, and in those of before, with the document beside it.
#[test]
fn the_commands_of_aws_accept_it() {
    for kind in [Kind::Pkcs7, Kind::Rsa2048] {
        let name = kind.name();
        let pages = [
            format!(
                "openssl smime -verify -in {name}.pem -inform PEM -certfile certificate -noverify | tee verified"
            ),
            format!(
                "openssl smime -verify -in {name}.pem -inform PEM -content document -certfile certificate -noverify \
                 >verified"
            ),
        ];
        for page in pages {
            let directory = signed(kind, DOCUMENT, DOCUMENT);
            let armour = format!(
                "echo '-----BEGIN PKCS7-----' >>{name}.pem && cat {name} >>{name}.pem && echo >>{name}.pem && \
                 echo '-----END PKCS7-----' >>{name}.pem"
            );
            let output = run(directory.path(), &format!("{armour}\n{page}\ncmp document verified"));
            assert!(
                output.status.success() && said(&output).contains("successful"),
                "{page}: {}",
                said(&output)
            );
        }
    }
}

#[test]
fn what_was_changed_or_is_somebody_elses_is_refused() {
    for kind in [Kind::Pkcs7, Kind::Rsa2048] {
        // The document in the signature was changed too.
        let directory = signed(kind, DOCUMENT, DOCUMENT);
        let change = format!(
            "tr -d '\\n' <{0} | base64 -d | sed 's/us-east-1/us-east-2/' | base64 -w 64 | head -c -1 >changed && mv changed {0}",
            kind.name()
        );
        assert!(run(directory.path(), &change).status.success());
        let output = run(directory.path(), commands(kind.name()));
        assert!(!output.status.success() && said(&output).contains("failure"), "{}", said(&output));
    }
    let other = Authority::generate("us-east-1", Timestamp::now()).unwrap();
    for kind in [Kind::Signature, Kind::Pkcs7, Kind::Rsa2048] {
        let directory = signed(kind, DOCUMENT, DOCUMENT);
        std::fs::write(directory.path().join("certificate"), other.certificate(kind).unwrap()).unwrap();
        let output = run(directory.path(), commands(kind.name()));
        assert!(!output.status.success(), "{kind:?}: {}", said(&output));
    }
}

#[test]
fn a_server_is_verified_by_its_names_and_by_nothing_else() {
    let names = ["innkeeper.example", "*.innkeeper.example", "192.0.2.1", "2001:db8::1"];
    let server = AUTHORITY.issue(&names, Timestamp::now()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("ca", &AUTHORITY.certificate(Kind::Ca).unwrap());
    write("chain", &server.chain_pem);
    write("key", &server.key_pem);
    // Strictly as RFC 5280 has it, which Python's ssl has been insisting on for some time.
    let verify = "openssl verify -x509_strict -purpose sslserver -CAfile ca";
    for (name, is_its) in [
        ("-verify_hostname innkeeper.example", true),
        ("-verify_hostname a.innkeeper.example", true),
        ("-verify_hostname example", false),
        ("-verify_ip 192.0.2.1", true),
        ("-verify_ip 2001:db8::1", true),
        ("-verify_ip 192.0.2.2", false),
    ] {
        let output = run(directory.path(), &format!("{verify} {name} chain"));
        assert_eq!(output.status.success(), is_its, "{name}: {}", said(&output));
    }
    // The key is the certificate's.
    let same = "openssl pkey -in key -pubout >own && openssl x509 -in chain -pubkey -noout | cmp - own";
    let output = run(directory.path(), same);
    assert!(output.status.success(), "{}", said(&output));
    // A server is no authority.
    write("server", &server.chain_pem);
    let output = run(directory.path(), "openssl x509 -in server -noout -ext basicConstraints,keyUsage");
    assert!(said(&output).contains("CA:FALSE"), "{}", said(&output));
    let other = Authority::generate("us-east-1", Timestamp::now()).unwrap();
    write("ca", &other.certificate(Kind::Ca).unwrap());
    let output = run(directory.path(), &format!("{verify} chain"));
    assert!(!output.status.success(), "{}", said(&output));
}

#[test]
fn certificates_say_what_they_are_for() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, parts) in [
        (Kind::Ca, ["CN = Innkeeper us-east-1", "CA:TRUE, pathlen:0", "Digital Signature, Certificate Sign"]),
        (Kind::Pkcs7, ["CN = Innkeeper us-east-1 DSA", "CA:FALSE", "Digital Signature"]),
    ] {
        std::fs::write(directory.path().join("certificate"), AUTHORITY.certificate(kind).unwrap()).unwrap();
        let output = run(directory.path(), "openssl x509 -in certificate -noout -text");
        for part in parts {
            assert!(said(&output).contains(part), "{part}: {}", said(&output));
        }
        let output = run(directory.path(), "openssl verify -x509_strict -CAfile certificate certificate");
        assert!(output.status.success(), "{}", said(&output));
        // In fifty years they are still good.
        let later = Timestamp::now().as_second() + 50 * 365 * 86_400;
        let output =
            run(directory.path(), &format!("openssl verify -attime {later} -CAfile certificate certificate"));
        assert!(output.status.success(), "{}", said(&output));
    }
}
