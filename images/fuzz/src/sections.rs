//! Inputs of several texts.

/// The texts of an input, which are parted by lines of three dashes. Seeds can be read and written that way.
pub fn sections(input: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(input).split("\n---\n").map(str::to_owned).collect()
}
