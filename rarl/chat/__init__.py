"""Language models at OpenAI-compatible endpoints, which judge answers or are asked as rivals.

| module | what it does |
|---|---|
| `remote` | what must be there before anything is sent: consent, key, budget; what is sent and where it goes |
| `endpoint` | one request, and what each failure means |
| `client` | many requests: concurrency, rate limit, budget, retries |
| `journal` | the responses, on disk, so that nothing is asked or paid for twice |
"""
