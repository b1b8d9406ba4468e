//! Text that a controller wrote, and text for standard output.

use std::io::{self, ErrorKind, Write};

/// The text of an ASCII field: without the padding, and nothing that a terminal would act on.
#[must_use]
pub fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = field[..end].iter().map(|&byte| match byte {
        b' '..=b'~' => char::from(byte),
        _ => '?',
    });
    text.collect::<String>().trim().to_owned()
}

/// Writes to standard output. Whoever reads it may stop to, as `head` does: that is no error.
///
/// # Errors
/// Any other failure to write, such as a full disk.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
