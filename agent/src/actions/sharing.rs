//! What an account shares with others, images and snapshots alike: to whom permission is given, and by whom it is taken.

use serde::Serialize;

use crate::query::ApiError;

/// The group that everybody is in.
pub const EVERYBODY: &str = "all";

/// Whether a text is the number of an account.
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A permission in answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Permission {
    user_id: Option<String>,
    group: Option<String>,
}

impl From<&String> for Permission {
    fn from(who: &String) -> Self {
        match who.as_str() {
            EVERYBODY => Self { user_id: None, group: Some(who.clone()) },
            _ => Self { user_id: Some(who.clone()), group: None },
        }
    }
}

/// Those who get a permission, and those who lose it.
#[derive(Debug, Default)]
pub struct Changes {
    /// Who gets it.
    pub add: Vec<String>,
    /// Who loses it.
    pub remove: Vec<String>,
}

impl Changes {
    /// The same with those that a request names in the other way that there is: a list, and what to do with it.
    pub fn and_named(mut self, named: Vec<String>, operation: Option<&str>) -> Result<Self, ApiError> {
        match operation {
            Some("add") => self.add.extend(named),
            Some("remove") => self.remove.extend(named),
            None if named.is_empty() => {}
            None => return Err(ApiError::missing("OperationType")),
            Some(other) => {
                return Err(ApiError::invalid(other, "OperationType", "There are add and remove."));
            }
        }
        Ok(self)
    }

    /// Whether nobody gets or loses anything.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }

    /// Whether everybody gets it.
    pub fn makes_public(&self) -> bool {
        self.add.iter().any(|who| who == EVERYBODY)
    }

    /// Makes permissions what they are after that.
    pub fn apply(self, permissions: &mut Vec<String>) {
        permissions.retain(|who| !self.remove.contains(who));
        permissions.extend(self.add);
        permissions.sort();
        permissions.dedup();
    }
}
