//! The switch of the application from one database to the other, and back.

pub mod fence;
