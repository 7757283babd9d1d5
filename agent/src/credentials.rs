//! The access key in a file that AWS's tools read (`AWS_SHARED_CREDENTIALS_FILE`), with the region and the endpoint, so
//! that they need nothing else to find us.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What a client needs to know.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AKIA…`.
    pub access_key_id: String,
    /// What goes with it.
    pub secret_access_key: String,
    /// The region.
    pub region: String,
    /// Such as `http://127.0.0.1:8773`.
    pub endpoint_url: String,
    /// A file with the certificates by which the endpoint is trusted; by default those that the system has.
    pub ca_bundle: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("endpoint_url", &self.endpoint_url)
            .finish_non_exhaustive()
    }
}

/// The names in the file that are always there, in the order of the fields.
const NAMES: [&str; 4] = ["aws_access_key_id", "aws_secret_access_key", "region", "endpoint_url"];

/// The one that may be there.
const CA_BUNDLE: &str = "ca_bundle";

impl Credentials {
    fn values(&self) -> [&str; 4] {
        [&self.access_key_id, &self.secret_access_key, &self.region, &self.endpoint_url]
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let lines = NAMES.into_iter().zip(self.values());
        let lines = lines.chain(self.ca_bundle.as_deref().map(|value| (CA_BUNDLE, value)));
        let lines = lines.map(|(name, value)| format!("{name} = {value}\n"));
        format!("[default]\n{}", String::from_iter(lines))
    }

    /// Reads what [`Credentials::render`] has written, from the profile `default`. None if something is missing.
    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim);
        let profile = lines.skip_while(|line| *line != "[default]").skip(1);
        let settings: Vec<(&str, &str)> = profile
            .take_while(|line| !line.starts_with('['))
            .filter_map(|line| line.split_once('='))
            .collect();
        let value = |name: &str| {
            let (_, value) = settings.iter().find(|(found, _)| found.trim() == name)?;
            Some(value.trim().to_owned())
        };
        let [id, secret, region, endpoint] = NAMES;
        Some(Self {
            access_key_id: value(id)?,
            secret_access_key: value(secret)?,
            region: value(region)?,
            endpoint_url: value(endpoint)?,
            ca_bundle: value(CA_BUNDLE),
        })
    }

    /// Reads the file.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        Self::parse(&text).ok_or_else(|| {
            let reason = format!("its profile [default] does not have all of {}", NAMES.join(", "));
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    }

    /// Writes the file, for its owner alone, if it is not as it should be. Whoever reads it meanwhile sees the old one
    /// or the new one.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if Self::read(path).is_ok_and(|found| found == *self) {
            return Ok(());
        }
        let new = path.with_extension("new");
        // Left behind by a crash, perhaps with another mode.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(self.render().as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "AKIAEXAMPLE".into(),
            secret_access_key: "swordfish".into(),
            region: "us-east-1".into(),
            endpoint_url: "http://127.0.0.1:8773".into(),
            ca_bundle: None,
        }
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        fs::write(path.with_extension("new"), "left behind").unwrap();
        let mut credentials = credentials();
        credentials.write(&path).unwrap();
        assert_eq!(Credentials::read(&path).unwrap(), credentials);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        credentials.endpoint_url = "https://127.0.0.1:1".into();
        credentials.ca_bundle = Some("/var/lib/innkeeper/ca.pem".into());
        credentials.write(&path).unwrap();
        assert_eq!(Credentials::read(&path).unwrap(), credentials);
        assert!(!path.with_extension("new").exists());
    }

    #[test]
    fn only_the_default_profile_is_read() {
        let text =
            format!("# mine\n[other]\nregion = eu-west-1\n\n{}[third]\nregion = x\n", credentials().render());
        assert_eq!(Credentials::parse(&text), Some(credentials()));
        for text in ["", "[default]", "[other]\naws_access_key_id = a"] {
            assert_eq!(Credentials::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_secret_does_not_get_into_a_log() {
        assert!(!format!("{:?}", credentials()).contains("swordfish"));
    }
}
