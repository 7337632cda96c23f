//! Arguments of a call, bound to parameters as Python binds them.
use super::value::Value;
use super::{Outcome, fail};

/// Evaluated arguments.
#[derive(Debug, Default)]
pub(super) struct Args<'a> {
    pub positional: Vec<Value<'a>>,
    pub keyword: Vec<(&'a str, Value<'a>)>,
}

impl<'a> Args<'a> {
    /// One value a parameter, none where it was not given. Too many or unknown ones are an error.
    pub fn bind<const N: usize>(self, of: &str, names: [&str; N]) -> Outcome<[Option<Value<'a>>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return fail(format!("{of} takes at most {N} arguments here, got {}", self.positional.len()));
        }
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keyword {
            let Some(at) = names.iter().position(|known| *known == name) else {
                return fail(format!("{of} has no argument '{name}' here"));
            };
            if bound[at].is_some() {
                return fail(format!("{of} got two values for '{name}'"));
            }
            bound[at] = Some(value);
        }
        Ok(bound)
    }

    /// No arguments at all.
    pub fn none(self, of: &str) -> Outcome<()> {
        self.bind::<0>(of, []).map(|_| ())
    }
}
