//! The terminal loop: takes the terminal, draws, reads keys, and gives it back however it ends. A panic gives it back too, by
//! the hook that ratatui installs.

use super::model::{Effect, Model};
use super::render::draw;
use super::source::{Source, Update};
use super::trend::Glyphs;
use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use std::os::fd::AsFd;
use std::time::Duration;

/// Longest wait for a key, in milliseconds: how late news are drawn.
const TICK: u8 = 50;
/// Most updates and keys before the next drawing.
const BATCH: usize = 64;

/// The terminal as long as it is ours.
struct Taken {
    terminal: DefaultTerminal,
}

impl Taken {
    fn take() -> anyhow::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore());
        Ok(Self { terminal: terminal.context("take the terminal")? })
    }

    /// Gives the terminal back until somebody continues this process.
    fn suspend(&mut self) -> anyhow::Result<()> {
        ratatui::restore();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTSTP).context("stop")?;
        self.terminal = ratatui::try_init().context("take the terminal again")?;
        self.terminal.clear().context("draw")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the model until somebody wants no more.
///
/// # Errors
/// The terminal is gone.
pub fn run(model: &mut Model, source: &mut Source) -> anyhow::Result<()> {
    let glyphs = glyphs(|name| std::env::var(name).ok());
    let mut taken = Taken::take()?;
    let mut changed = true;
    loop {
        for _ in 0..BATCH {
            match source.next()? {
                None => break,
                Some(Update::Stop) => return Ok(()),
                Some(update) => {
                    model.update(update);
                    changed = true;
                }
            }
        }
        if changed {
            taken.terminal.draw(|frame| draw(frame, model, glyphs)).context("draw")?;
            changed = false;
        }
        wait_for_input()?;
        for _ in 0..BATCH {
            if !event::poll(Duration::ZERO).context("read the keyboard")? {
                break;
            }
            changed = true;
            match event::read().context("read the keyboard")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match model.key(key) {
                    Effect::Draw => {}
                    Effect::Quit => return Ok(()),
                    Effect::Suspend => taken.suspend()?,
                    Effect::Interval(interval) => source.set_interval(interval),
                },
                // A resize: drawing asks for the size.
                _ => {}
            }
        }
    }
}

/// Waits until there is something to read, or a tick. The library would read the end of a terminal that is gone for ever, so
/// that it is asked only about one that is there.
fn wait_for_input() -> anyhow::Result<()> {
    let stdout = std::io::stdout();
    let mut terminal = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    let mut wait = TICK;
    loop {
        match poll(&mut terminal, wait) {
            Ok(_) => break,
            // A signal tells nothing of the terminal; it is asked once more, without waiting.
            Err(Errno::EINTR) => wait = 0,
            Err(error) => return Err(error).context("wait for the keyboard"),
        }
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    if terminal[0].revents().is_some_and(|events| events.intersects(gone)) {
        bail!("the terminal is gone");
    }
    Ok(())
}

/// What the terminal can show, as the locale says.
fn glyphs(variable: impl Fn(&str) -> Option<String>) -> Glyphs {
    let names = ["LC_ALL", "LC_CTYPE", "LANG"];
    let locale = names.into_iter().filter_map(variable).find(|value| !value.is_empty());
    let utf8 = locale.is_some_and(|locale| {
        let locale = locale.to_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    if utf8 { Glyphs::Blocks } else { Glyphs::Ascii }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_what_the_locale_can_show() {
        let with = |set: &'static [(&str, &str)]| {
            glyphs(move |name| {
                let found = set.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(with(&[("LANG", "de_DE.UTF-8")]), Glyphs::Blocks);
        assert_eq!(with(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]), Glyphs::Ascii);
        assert_eq!(with(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]), Glyphs::Blocks);
        assert_eq!(with(&[]), Glyphs::Ascii);
    }
}
