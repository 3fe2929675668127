-- From version 2 to 3: adapters of mlx-lm. The column is made anew because a CHECK cannot be changed; not the table, whose rows
-- others refer to.

ALTER TABLE adapters RENAME COLUMN format TO format_before;
ALTER TABLE adapters ADD COLUMN format TEXT NOT NULL DEFAULT '' CHECK (format IN ('', 'peft', 'gguf', 'mlx'));
UPDATE adapters SET format = format_before;
ALTER TABLE adapters DROP COLUMN format_before;
