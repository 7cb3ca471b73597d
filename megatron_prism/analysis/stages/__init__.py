"""The stages that analyse, one file for each verb."""
