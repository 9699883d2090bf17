//! Damage, in its everyday form: one flipped bit, a cut, a deletion of every kind of object. It is found and named;
//! nothing wrong is delivered; what is not affected restores. `tests/accept/7-damage.py` shows the same of the program.

mod harm;
mod packs;
mod records;
