"""Speed of the study's code, each against a named reference measured in the same run."""
