-- Documents are compared with the index in the order of their keys, one collection at a time.
CREATE INDEX documents_by_key ON documents (collection, key);
