//! With which certificate the API is served, if the configuration says that it is served over TLS.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use innkeeper_identity::Kind;
use jiff::Timestamp;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::identity::Identity;

/// The names that a certificate of our own has besides, for those on this host.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What the API's TLS needs; none without TLS. With a certificate of our own, also writes the authority's down, for clients
/// to trust. Blocks.
pub fn configure(config: &Config, identity: &Identity) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    if config.tls_names.is_empty() {
        return Ok(None);
    }
    let (chain, key) = match (&config.tls_certificate, &config.tls_key) {
        (Some(certificate), Some(key)) => (read("tls-certificate", certificate)?, read("tls-key", key)?),
        _ => own(config, identity)?,
    };
    let made = server(&chain, &key);
    let made = made.with_context(|| match &config.tls_certificate {
        Some(path) => format!("cannot serve TLS with tls-certificate = {:?}", path.display().to_string()),
        None => "cannot serve TLS with the agent's own certificate".to_owned(),
    })?;
    Ok(Some(Arc::new(made)))
}

fn read(key: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {key} = {:?}", path.display().to_string()))
}

/// A certificate of our own is made at each start, and its key is nowhere but in memory.
fn own(config: &Config, identity: &Identity) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let authority = identity.authority()?;
    if let Some(path) = config.ca_bundle() {
        let certificate = authority.certificate(Kind::Ca)?;
        // Nobody who reads it meanwhile is to see half of it.
        if fs::read(&path).ok().as_deref() != Some(certificate.as_bytes()) {
            let new = path.with_extension("new");
            let written = fs::write(&new, certificate).and_then(|()| fs::rename(&new, &path));
            written.with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let names: Vec<&str> = config.tls_names.iter().map(String::as_str).chain(LOCAL).collect();
    let server = authority.issue(&names, Timestamp::now())?;
    Ok((server.chain_pem.into_bytes(), server.key_pem.into_bytes()))
}

fn server(chain: &[u8], key: &[u8]) -> anyhow::Result<ServerConfig> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .context("its certificates are no PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("its key is no private key in PEM")?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions()?.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::State;
    use crate::store::memory::Memory;

    fn configured(config: &Config) -> Result<bool, String> {
        let state = Arc::new(State::open(Arc::new(Memory::default())).unwrap());
        let identity = Identity::new(state, "us-east-1".into());
        configure(config, &identity).map(|tls| tls.is_some()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_certificate_is_ours_or_the_operators() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config { state_directory: directory.path().into(), ..Config::default() };
        assert_eq!(configured(&config), Ok(false));
        assert!(!directory.path().join("ca.pem").exists());
        let own = Config { tls_names: vec!["innkeeper.example".into()], ..config.clone() };
        assert_eq!(configured(&own), Ok(true));
        let authority = fs::read_to_string(directory.path().join("ca.pem")).unwrap();
        assert!(authority.starts_with("-----BEGIN CERTIFICATE-----\n"), "{authority}");

        let authority = innkeeper_identity::Authority::generate("x", Timestamp::now()).unwrap();
        let server = authority.issue(&["innkeeper.example"], Timestamp::now()).unwrap();
        let other = authority.issue(&["innkeeper.example"], Timestamp::now()).unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, text) in
            [("chain", &server.chain_pem), ("key", &server.key_pem), ("other", &other.key_pem)]
        {
            fs::write(path(name), text).unwrap();
        }
        let with = |certificate: &str, key: &str| {
            let (certificate, key) = (Some(path(certificate)), Some(path(key)));
            configured(&Config { tls_certificate: certificate, tls_key: key, ..own.clone() })
        };
        assert_eq!(with("chain", "key"), Ok(true));
        for (certificate, key, reason) in [
            ("nothing", "key", "cannot read tls-certificate = "),
            ("chain", "nothing", "cannot read tls-key = "),
            ("chain", "other", "cannot serve TLS with tls-certificate = "),
            ("chain", "chain", "cannot serve TLS with tls-certificate = "),
            ("key", "key", "cannot serve TLS with tls-certificate = "),
        ] {
            let error = with(certificate, key).unwrap_err();
            assert!(error.starts_with(reason), "{certificate} {key}: {error}");
        }
    }
}
