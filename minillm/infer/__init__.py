"""From scores to text: choosing the next token, and doing so again and again."""
