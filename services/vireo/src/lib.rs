//! What a person types: up, reload, check.
