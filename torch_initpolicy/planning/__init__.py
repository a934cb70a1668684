"""From rules and facts to a plan: one step for each site, printed, compared and saved."""
