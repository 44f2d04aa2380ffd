"""From a query to moments: ranking, hubs, examples, and how results are shown."""
